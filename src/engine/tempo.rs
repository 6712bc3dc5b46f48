//! How many rows of prompts a step may have, so that those who generate beside them get their
//! next token in time.
//!
//! ```text
//! time of a step ≈ what it takes without prompts + rows of prompts · what one takes
//! ```
//!
//! Both are means over the last steps, since rows take longer the further a prompt has come.

use std::time::Duration;

/// Rows of a step at the least, so that prompts go on whatever the target.
const LEAST: usize = 16;
/// Before the first measurement.
const FIRST: usize = 64;
/// The weight of a new measurement in a mean.
const NEWEST: f64 = 0.4;

#[derive(Clone, Debug)]
pub(super) struct Tempo {
    /// `None`: no target.
    target: Option<f64>,
    most: usize,
    /// Seconds of a step without prompts, and of a row of a prompt.
    alone: Option<f64>,
    row: Option<f64>,
    /// Rows of prompts in steps since the last measurement, and steps.
    rows: usize,
    steps: usize,
}

impl Tempo {
    /// Steps of `most` rows, or of fewer if they would take longer than `target`.
    pub fn new(target: Option<Duration>, most: usize) -> Self {
        let target = target.map(|target| target.as_secs_f64());
        Self { target, most, alone: None, row: None, rows: 0, steps: 0 }
    }

    /// Rows of the next step; `shared`: somebody generates in it.
    pub fn rows(&self, shared: bool) -> usize {
        let (Some(target), true) = (self.target, shared) else { return self.most };
        let least = LEAST.min(self.most);
        let Some(row) = self.row else { return FIRST.clamp(least, self.most) };
        let left = target - self.alone.unwrap_or(0.0);
        ((left / row) as usize).clamp(least, self.most)
    }

    /// A step began that has so many rows of prompts.
    pub fn began(&mut self, rows: usize) {
        self.rows += rows;
        self.steps += 1;
    }

    /// The steps that have begun took so long, all together.
    pub fn took(&mut self, time: Duration) {
        let (rows, steps) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.steps));
        let time = time.as_secs_f64();
        if steps == 0 {
            return;
        }
        let mean =
            |old: Option<f64>, new: f64| Some(old.map_or(new, |old| old + NEWEST * (new - old)));
        match rows {
            0 => self.alone = mean(self.alone, time / steps as f64),
            _ => {
                // What is known of steps alone may be of fewer requests, but never of none.
                let left = time - steps as f64 * self.alone.unwrap_or(0.0);
                self.row = mean(self.row, left.max(0.1 * time) / rows as f64);
            }
        }
    }

    /// Steps that have begun are not measured after all.
    pub fn forget(&mut self) {
        (self.rows, self.steps) = (0, 0);
    }

    /// Seconds that computing so many tokens anew takes, as far as is known.
    pub fn recompute(&self, tokens: usize) -> f64 {
        tokens as f64 * self.row.unwrap_or(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which a step takes 5 ms and a row 0.4 ms, later 0.8 ms.
    #[test]
    fn steps_come_near_their_target_and_stay_below() {
        let mut tempo = Tempo::new(Some(Duration::from_millis(100)), 512);
        assert_eq!((tempo.rows(false), tempo.rows(true)), (512, 64));
        let step = |rows: usize, row: f64, tempo: &mut Tempo| {
            tempo.began(rows);
            let time = 0.005 + row * rows as f64;
            tempo.took(Duration::from_secs_f64(time));
            time
        };
        for _ in 0..5 {
            step(0, 0.0, &mut tempo);
        }
        for row in [0.0004, 0.0008] {
            let times: Vec<_> = (0..30)
                .map(|_| {
                    let rows = tempo.rows(true);
                    step(rows, row, &mut tempo)
                })
                .collect();
            assert!(times[10..].iter().all(|time| (0.095..=0.105).contains(time)), "{times:?}");
        }
        assert!((tempo.recompute(1000) - 0.8).abs() < 0.02);
        // A pause is no step.
        tempo.began(64);
        tempo.forget();
        tempo.took(Duration::from_secs(100));
        assert!((tempo.recompute(1000) - 0.8).abs() < 0.02);
    }

    #[test]
    fn prompts_go_on_whatever_the_target() {
        let mut tempo = Tempo::new(Some(Duration::from_millis(1)), 512);
        tempo.began(512);
        tempo.took(Duration::from_secs(1));
        assert_eq!((tempo.rows(true), tempo.rows(false)), (LEAST, 512));
        assert_eq!(Tempo::new(None, 512).rows(true), 512);
        assert_eq!(Tempo::new(Some(Duration::from_millis(1)), 8).rows(true), 8);
    }
}
