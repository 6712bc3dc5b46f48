//! What other processes take of the machine.

/// Time since the machine's start, in the system's ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ticks {
    /// Cores that this process may run on.
    pub(crate) cores: usize,
    /// Of all cores, idle or not.
    pub(crate) all: u64,
    /// Of these, those in which something ran.
    pub(crate) busy: u64,
    /// Of these, those of this process.
    pub(crate) own: u64,
}

impl Ticks {
    /// Those until now; `None` where the system does not tell.
    pub(crate) fn now() -> Option<Self> {
        let read = |name: &str| std::fs::read_to_string(name).ok();
        let allowed = read("/proc/self/status")?;
        let allowed = allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let ticks = Self::of_cores(&read("/proc/stat")?, allowed?.trim())?;
        Some(Self { own: own(&read("/proc/self/stat")?)?, ..ticks })
    }

    /// From `/proc/stat`, the cores of a list such as `0-3,8`.
    fn of_cores(stat: &str, allowed: &str) -> Option<Self> {
        let allowed = |core: usize| {
            allowed.split(',').any(|part| {
                let (from, to) = part.split_once('-').unwrap_or((part, part));
                let ends = from.trim().parse().ok().zip(to.trim().parse().ok());
                ends.is_some_and(|(from, to): (usize, usize)| (from..=to).contains(&core))
            })
        };
        let mut ticks = Self::default();
        for line in stat.lines() {
            let mut words = line.split_whitespace();
            let core = words.next().and_then(|word| word.strip_prefix("cpu"));
            if !core.and_then(|core| core.parse().ok()).is_some_and(allowed) {
                continue;
            }
            // user nice system idle iowait irq softirq steal; guests are part of user.
            let numbers: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
            let [user, nice, system, idle, waiting, rest @ ..] = numbers.as_slice() else {
                continue;
            };
            let busy = user + nice + system + rest.iter().sum::<u64>();
            ticks.cores += 1;
            ticks.busy += busy;
            ticks.all += busy + idle + waiting;
        }
        (ticks.cores > 0).then_some(ticks)
    }

    /// The share of the time since `before` that other processes took; what a hypervisor took
    /// counts, too.
    pub(crate) fn others_since(&self, before: &Self) -> Option<f64> {
        let since = |now: u64, then: u64| now.saturating_sub(then);
        let all = since(self.all, before.all);
        let others =
            since(since(self.busy, before.busy), since(self.own, before.own)) as f64 / all as f64;
        // Some containers have a clock that stands still.
        (all > 0 && self.cores == before.cores).then_some(others)
    }
}

/// The ticks of a process, from its `/proc/PID/stat`: user and system time.
fn own(stat: &str) -> Option<u64> {
    // The name in front may hold anything.
    let mut words = stat.rsplit(')').next()?.split_whitespace().skip(11);
    Some(words.next()?.parse::<u64>().ok()? + words.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 10 1 5 100 4 1 1 2 3 0\n\
                        cpu1 20 0 5 90 5 0 0 0 0 0\ncpu10 7 0 0 3 0 0 0 0 0 0\nintr 5\n";

    #[test]
    fn ticks_are_those_of_the_cores_that_may_be_used() {
        let ticks = |cores, busy, all| Some(Ticks { cores, busy, all, own: 0 });
        assert_eq!(Ticks::of_cores(STAT, "0-1"), ticks(2, 45, 244));
        assert_eq!(Ticks::of_cores(STAT, "1,10-12"), ticks(2, 32, 130));
        assert_eq!(Ticks::of_cores(STAT, "4"), None);
        assert_eq!(Ticks::of_cores("", "0"), None);
        assert_eq!(own("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0"), Some(42));
    }

    #[test]
    fn others_are_what_is_neither_idle_nor_ours() {
        let at = |all, busy, own| Ticks { cores: 2, all, busy, own };
        let before = at(1000, 500, 100);
        assert_eq!(at(1200, 700, 300).others_since(&before), Some(0.0));
        assert_eq!(at(1200, 700, 200).others_since(&before), Some(0.5));
        // Ticks are counted at different moments.
        assert_eq!(at(1200, 600, 210).others_since(&before), Some(0.0));
        assert_eq!(before.others_since(&before), None);
    }
}
