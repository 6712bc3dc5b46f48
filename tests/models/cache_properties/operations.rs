//! The operations, on the cache and on the model, and what must hold after each.

use std::collections::{BTreeMap, BTreeSet};

use kvfold::Error;
use kvfold::cache::{ClassKind, Compaction, PAGE_TOKENS, SeqId};

use super::model::{Flight, MGroup, MRun, MSeq, MStream, Rule, Seen, Token, World};

impl World {
    pub fn fresh_tokens(&mut self, requests: &[(SeqId, usize)]) -> Vec<Vec<u64>> {
        let mut fresh = |n: usize| {
            let tokens = (self.next_token..self.next_token + n as u64).collect();
            self.next_token += n as u64;
            tokens
        };
        requests.iter().map(|&(_, n)| fresh(n)).collect()
    }

    pub fn prepare(&mut self, requests: &[(SeqId, usize)], seen: &mut Seen) {
        let before = self.cache.clone();
        let needed: Result<Vec<u64>, Error> =
            requests.iter().map(|&(seq, n)| before.bytes_needed(seq, n)).collect();
        let ids: BTreeSet<SeqId> = requests.iter().map(|request| request.0).collect();
        match self.cache.prepare(requests) {
            Ok(step) => {
                assert_eq!(ids.len(), requests.len());
                assert!(ids.iter().all(|seq| !self.seqs[seq].busy));
                let added = self.cache.held_bytes() - before.held_bytes();
                assert_eq!(added, needed.unwrap().iter().sum::<u64>());
                let tokens = self.fresh_tokens(requests);
                self.execute(&step, &tokens, seen);
                self.check_step(&step, &tokens);
                for seq in &ids {
                    self.seqs.get_mut(seq).unwrap().busy = true;
                }
                self.flights.push(Flight { step, tokens });
            }
            Err(error) => {
                seen.refused += 1;
                assert_eq!(format!("{before:?}"), format!("{:?}", self.cache));
                match error {
                    Error::KvBudget { .. } => {
                        let wanted = before.held_bytes() + needed.unwrap().iter().sum::<u64>();
                        assert!(wanted > before.budget());
                    }
                    Error::Busy { .. } => assert!(ids.iter().any(|seq| self.seqs[seq].busy)),
                    Error::Misuse { .. } => assert!(ids.len() < requests.len()),
                    error => panic!("{error}"),
                }
            }
        }
    }

    pub fn land(&mut self, flight: usize, accept: Option<&[u16]>) {
        let Flight { step, tokens } = self.flights.remove(flight);
        self.check_step(&step, &tokens);
        let ids: Vec<SeqId> = step.seqs.iter().map(|share| share.seq).collect();
        let accepted: Vec<usize> = tokens
            .iter()
            .enumerate()
            .map(|(k, tokens)| match accept {
                None => 0,
                // Mostly all of them.
                Some(picks) => match usize::from(picks[k % picks.len()]) {
                    pick if pick % 3 > 0 => tokens.len(),
                    pick => pick % (tokens.len() + 1),
                },
            })
            .collect();
        match accept {
            None => self.cache.abort(step),
            Some(_) => self.cache.commit(step, &accepted).unwrap(),
        }
        self.release();
        for ((seq, tokens), accepted) in ids.iter().zip(&tokens).zip(accepted) {
            let seq = self.seqs.get_mut(seq).unwrap();
            seq.busy = false;
            seq.len += accepted;
            if accepted == 0 {
                continue;
            }
            let first = seq.len - accepted;
            for (group, rule) in seq.groups.iter_mut().zip(&self.rules) {
                for stream in &mut group.streams {
                    let last_query = stream.tokens.len() + tokens.len() - 1;
                    let new = tokens[..accepted].iter().enumerate();
                    stream.tokens.extend(new.map(|(i, &id)| Token::new(id, first + i)));
                    let kept = stream.tokens.len();
                    let bound = stream.bound(rule, kept).min(stream.bound(rule, last_query));
                    stream.sealed = (0..bound).collect();
                }
                group.drop_dead(rule);
                if group.compacted.is_none() {
                    group.streams.iter_mut().for_each(|stream| stream.look_ahead(rule));
                }
            }
        }
    }

    pub fn fork(&mut self, seq: SeqId) {
        match self.cache.fork(seq) {
            Ok(copy) => {
                let model = self.seqs[&seq].clone();
                assert!(!model.busy);
                self.seqs.insert(copy, model);
                self.forked = true;
            }
            Err(error) => self.expect_busy(seq, &error),
        }
    }

    pub fn expect_busy(&self, seq: SeqId, error: &Error) {
        assert!(matches!(error, Error::Busy { .. }) && self.seqs[&seq].busy, "{error}");
    }

    pub fn truncate(&mut self, seq: SeqId, new_len: usize, seen: &mut Seen) {
        let before = self.cache.clone();
        let result = self.cache.truncate(seq, new_len);
        let model = self.seqs.get_mut(&seq).unwrap();
        let cut = model.len - new_len;
        let may = allowed(model, &self.rules, new_len);
        match result {
            Ok(()) => {
                assert!(may && !model.busy);
                model.len = new_len;
                for stream in model.groups.iter_mut().flat_map(|group| &mut group.streams) {
                    stream.tokens.truncate(stream.tokens.len() - cut);
                }
                self.release();
            }
            Err(error) => {
                seen.refused += 1;
                assert_eq!(format!("{before:?}"), format!("{:?}", self.cache));
                match error {
                    Error::Busy { .. } => assert!(model.busy),
                    Error::Sealed(message) => {
                        assert!(!may);
                        // The message names the first length from there on that works.
                        let works = |&len: &usize| allowed(model, &self.rules, len);
                        let floor = (new_len..).find(works).unwrap();
                        assert_eq!(before.rewindable_to(seq, new_len).unwrap(), floor);
                        assert!(message.contains(&format!("rewound to {floor} at the least")));
                    }
                    error => panic!("{error}"),
                }
            }
        }
    }

    pub fn compact(&mut self, seq: SeqId, g: usize, pick: u64, seen: &mut Seen) {
        let before = self.cache.clone();
        let model = &self.seqs[&seq];
        let group = &model.groups[g];
        // A different share of each stream, sometimes nothing or everything.
        let keep: Vec<Vec<u32>> = (0..self.rules[g].streams)
            .map(|s| {
                let share = mix(pick, s as u64) % 6;
                let kept = |&(index, token): &(usize, &Token)| {
                    token.live && mix(pick ^ s as u64, index as u64) % 5 < share
                };
                let tokens = group.streams[s].tokens.iter().enumerate();
                tokens.filter(kept).map(|(index, _)| index as u32).collect()
            })
            .collect();
        match self.cache.compact(seq, g, &keep) {
            Ok(Compaction { frees, moves, gathers }) => {
                assert!(!model.busy);
                self.free(&frees);
                for moved in &moves {
                    let kinds = (self.kind(moved.from), self.kind(moved.to));
                    assert!(matches!(
                        kinds,
                        (ClassKind::Sealed, ClassKind::RaggedSealed)
                            | (ClassKind::Hot, ClassKind::RaggedHot)
                    ));
                    let read = (0..PAGE_TOKENS).map(|slot| {
                        let token = self.read(moved.from, slot, g, moved.stream);
                        Some((Some(moved.stream), token))
                    });
                    self.make(moved.to, read.collect());
                }
                seen.moves += moves.len();
                for gather in &gathers {
                    let from = gather.rows.iter();
                    let read = from.map(|&(block, slot)| {
                        let token = self.read(block, usize::from(slot), g, gather.stream);
                        Some((Some(gather.stream), token))
                    });
                    let mut rows: Vec<_> = read.collect();
                    rows.resize(self.rows_of(gather.to), None);
                    self.make(gather.to, rows);
                }
                seen.gathers += gathers.len();
                self.release();
                let rule = self.rules[g];
                let model = self.seqs.get_mut(&seq).unwrap();
                let group = &mut model.groups[g];
                if rule.sight.is_some() {
                    assert!(moves.is_empty() && gathers.is_empty());
                    for (stream, list) in group.streams.iter_mut().zip(&keep) {
                        for (i, token) in stream.tokens.iter_mut().enumerate() {
                            token.live &= list.contains(&(i as u32));
                        }
                    }
                    group.drop_dead(&rule);
                } else {
                    let streams = group.streams.iter().zip(&keep);
                    let streams = streams.map(|(stream, list)| packed(stream, &rule, list));
                    *group = MGroup { compacted: Some(model.len), streams: streams.collect() };
                }
            }
            Err(error) => {
                seen.refused += 1;
                assert_eq!(format!("{before:?}"), format!("{:?}", self.cache));
                match error {
                    Error::Busy { .. } => assert!(model.busy),
                    Error::KvBudget { needed, held, budget } => {
                        assert_eq!((held, budget), (before.held_bytes(), before.budget()));
                        assert!(needed > budget);
                    }
                    error => panic!("{error}"),
                }
            }
        }
    }

    pub fn clear(&mut self, seq: SeqId, g: usize, pick: u64, seen: &mut Seen) {
        let before = self.cache.clone();
        let model = self.seqs.get_mut(&seq).unwrap();
        let group = &mut model.groups[g];
        let s = mix(pick, 1) as usize % group.streams.len();
        let one = group.compacted.is_some() || mix(pick, 7).is_multiple_of(2);
        let (name, of) = if one { (Some(s), s..s + 1) } else { (None, 0..group.streams.len()) };
        let stream = &group.streams[s];
        // Whole pages, or any stretch, or every other token of it.
        let kept = stream.tokens.len() as u64;
        let mut from = mix(pick, 2) % (kept + 1);
        let mut to = from + mix(pick, 3) % (kept - from + 1);
        let every = 1 + (mix(pick, 4) % 4) / 3;
        if mix(pick, 5).is_multiple_of(2) {
            let to_grid = |i: u64| self.rules[g].sinks as u64 + i / 64 * 64;
            let first = if mix(pick, 6).is_multiple_of(3) { 0 } else { to_grid(from / 2) };
            (from, to) = (first.min(kept), to_grid(to + 63).min(kept));
        }
        let indices: Vec<u32> = (from..to).step_by(every as usize).map(|i| i as u32).collect();
        match self.cache.clear(seq, g, name, &indices) {
            Ok(()) => {
                assert!(!model.busy);
                for stream in &mut group.streams[of] {
                    indices.iter().for_each(|&i| stream.tokens[i as usize].live = false);
                }
                group.drop_dead(&self.rules[g]);
                self.release();
            }
            Err(error) => {
                seen.refused += 1;
                assert_eq!(format!("{before:?}"), format!("{:?}", self.cache));
                self.expect_busy(seq, &error);
            }
        }
    }

    pub fn end(&mut self, seq: SeqId) {
        match self.cache.free(seq) {
            Ok(()) => {
                assert!(!self.seqs.remove(&seq).unwrap().busy);
                self.release();
                assert!(matches!(self.cache.len(seq), Err(Error::NotFound { .. })));
            }
            Err(error) => self.expect_busy(seq, &error),
        }
    }

    /// Bytes that the sequences would hold if none shared a block.
    pub fn unshared_bytes(&self) -> u64 {
        let bytes = |kind, group| {
            let mut classes = self.cache.classes().iter();
            classes.find(|c| c.kind == kind && c.group == group).map_or(0, |c| c.block_bytes)
        };
        let mut sum = 0;
        for (g, group) in self.seqs.values().flat_map(|seq| seq.groups.iter().enumerate()) {
            let [sink, hot, sealed] = match group.compacted {
                None => [ClassKind::Sink, ClassKind::Hot, ClassKind::Sealed],
                Some(_) => [ClassKind::RaggedSink, ClassKind::RaggedHot, ClassKind::RaggedSealed],
            }
            .map(|kind| bytes(kind, g));
            // Streams of a uniform group share their pages.
            let pages_of = if group.compacted.is_some() { group.streams.len() } else { 1 };
            for (s, stream) in group.streams.iter().enumerate().take(pages_of) {
                let rule = self.rules[g];
                for (p, page) in rule.pages(stream.tokens.len()).iter().enumerate() {
                    let full = if p == 0 { rule.sinks } else { PAGE_TOKENS };
                    sum += match p {
                        _ if page.is_empty() || group.is_dead(s, page, full) => 0,
                        0 => sink,
                        p if stream.sealed.contains(&(p - 1)) => sealed,
                        _ => hot,
                    };
                }
            }
        }
        sum
    }

    pub fn check(&mut self, seen: &mut Seen) {
        self.cache.audit().unwrap();
        let (held, idle) = (self.cache.held_bytes(), self.cache.idle_bytes());
        let mut by_kind = BTreeMap::new();
        for block in self.memory.keys() {
            let desc = self.cache.classes()[usize::from(block.class.0)];
            *by_kind.entry(desc.kind).or_insert(0) += desc.block_bytes;
        }
        assert!(self.lazy || held + idle == by_kind.values().sum::<u64>());
        for (kind, bytes) in self.cache.bytes_by_kind() {
            let found = by_kind.get(&kind).copied().unwrap_or(0);
            let more = self.lazy || idle > 0;
            assert!(bytes == found || (more && bytes < found), "{bytes} of {found}");
        }
        assert!(self.cache.peak_bytes() <= self.cache.budget());
        if self.flights.is_empty() {
            let unshared = self.unshared_bytes();
            let exact = if self.forked { held <= unshared } else { held == unshared };
            assert!(exact, "{held} held, {unshared} if unshared");
        }
        for (&seq, model) in &self.seqs {
            assert_eq!(self.cache.len(seq).unwrap(), model.len);
            for (g, group) in model.groups.iter().enumerate() {
                for (s, stream) in group.streams.iter().enumerate() {
                    let name = group.compacted.map(|_| s);
                    assert_eq!(self.cache.kept(seq, g, name).unwrap(), stream.tokens.len());
                }
            }
        }
        // Read every idle sequence with one more token, which is then rejected.
        let idle: Vec<SeqId> =
            self.seqs.iter().filter(|(_, model)| !model.busy).map(|(&seq, _)| seq).collect();
        for seq in idle {
            let Ok(step) = self.cache.prepare(&[(seq, 1)]) else { continue };
            let tokens = self.fresh_tokens(&[(seq, 1)]);
            self.execute(&step, &tokens, seen);
            self.check_step(&step, &tokens);
            self.cache.abort(step);
            self.release();
            assert_eq!(self.cache.held_bytes(), held);
        }
    }

    /// Shares some pages, mostly of the front.
    pub fn share(&mut self, seq: SeqId, pick: u64, seen: &mut Seen) {
        let before = format!("{:?}", self.cache);
        let (model, rule) = (&self.seqs[&seq], self.rules[0]);
        let first = (mix(pick, 1) % 6) as usize;
        let end = first + 1 + (mix(pick, 2) % 4) as usize;
        let with_sinks = first == 0 && !mix(pick, 3).is_multiple_of(4);
        let start = if with_sinks { 0 } else { rule.sinks + 64 * first };
        let range = start..rule.sinks + 64 * end;
        match self.cache.share(seq, range.clone()) {
            Ok(run) => {
                assert!(!model.busy && model.groups.iter().all(|g| g.compacted.is_none()));
                let tokens_of = |(group, rule): (&MGroup, &Rule)| {
                    let pages = rule.pages(group.streams[0].tokens.len());
                    let mut tokens = group.streams[0].tokens[range.clone()].to_vec();
                    tokens.iter_mut().for_each(|token| token.live = true);
                    for (p, page) in pages.iter().enumerate() {
                        let full = if p == 0 { rule.sinks } else { 64 };
                        if page.start >= start && group.is_dead(0, page, full) {
                            let there = tokens.iter_mut().skip(page.start - start).take(full);
                            there.for_each(|token| token.live = false);
                        }
                    }
                    tokens
                };
                let tokens: Vec<_> = model.groups.iter().zip(&self.rules).map(tokens_of).collect();
                assert_eq!((run.position(), run.n_tokens()), (tokens[0][0].position, range.len()));
                let with_sinks = start == 0 && rule.sinks > 0;
                self.runs.push(MRun { run, with_sinks, tokens });
            }
            Err(error) => {
                seen.refused += 1;
                assert_eq!(before, format!("{:?}", self.cache));
                match error {
                    Error::Busy { .. } => assert!(model.busy),
                    Error::Misuse { .. } => {}
                    Error::Unsupported { .. } => {
                        assert!(self.rules.iter().any(|other| other.sinks != rule.sinks));
                    }
                    error => panic!("{error}"),
                }
            }
        }
    }

    /// Attaches one of the runs, mostly right behind the sequence.
    pub fn attach(&mut self, seq: SeqId, pick: u64, seen: &mut Seen) {
        if self.runs.is_empty() {
            return;
        }
        let before = format!("{:?}", self.cache);
        let (held, idle) = (self.cache.held_bytes(), self.cache.idle_bytes());
        let run = &self.runs[mix(pick, 1) as usize % self.runs.len()];
        let model = self.seqs.get_mut(&seq).unwrap();
        let gap = (mix(pick, 2) % 4).saturating_sub(2) as usize * 10;
        let at = if run.with_sinks { 0 } else { model.len + gap };
        match self.cache.attach(seq, &run.run, at) {
            Ok(()) => {
                assert!(!model.busy && (!run.with_sinks || model.len == 0));
                let now = (self.cache.held_bytes(), self.cache.idle_bytes());
                assert_eq!(held + idle, now.0 + now.1);
                let shift = (at as i64 - run.run.position() as i64) as i32;
                model.len = at + run.run.n_tokens();
                model.attached = model.len;
                for ((group, rule), tokens) in
                    model.groups.iter_mut().zip(&self.rules).zip(&run.tokens)
                {
                    for stream in &mut group.streams {
                        let own = if run.with_sinks { 0 } else { rule.sinks };
                        let place = own + 64 * stream.front;
                        let new = tokens.iter().map(|token| Token { shift, ..*token });
                        stream.tokens.splice(place..place, new);
                        let n = tokens.len() / 64;
                        let moved = stream.sealed.iter().map(|p| p + n).collect::<Vec<_>>();
                        let old: BTreeSet<usize> =
                            stream.sealed.iter().copied().filter(|p| *p < stream.front).collect();
                        let (from, front) = (stream.front, stream.front + n);
                        stream.sealed = moved.into_iter().filter(|p| *p >= front).collect();
                        stream.sealed.extend(old);
                        if rule.window.is_some() {
                            stream.sealed.extend(from..front);
                        }
                        stream.front = front;
                    }
                    group.drop_dead(rule);
                }
                self.forked = true;
                seen.attached += 1;
            }
            Err(error) => {
                seen.refused += 1;
                assert_eq!(before, format!("{:?}", self.cache));
                match error {
                    Error::Busy { .. } => assert!(model.busy),
                    Error::Misuse { .. } | Error::NotFound { .. } => {}
                    error => panic!("{error}"),
                }
            }
        }
    }

    pub fn finish(&mut self) {
        while !self.flights.is_empty() {
            self.land(0, None);
        }
        for seq in self.seqs.keys().copied().collect::<Vec<_>>() {
            self.end(seq);
        }
        std::mem::take(&mut self.runs).iter().for_each(|run| self.cache.forget(&run.run));
        self.lazy = false;
        self.release();
        self.cache.audit().unwrap();
        let left = (self.cache.held_bytes(), self.cache.idle_bytes(), self.memory.len());
        assert_eq!(left, (0, 0, 0));
    }
}

/// A hash good enough to scatter choices.
pub fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 20
}

/// A stream after a compaction: whole pages with what is left of them, then rows.
fn packed(stream: &MStream, rule: &Rule, keep: &[u32]) -> MStream {
    let mut new = MStream::default();
    let (mut whole, mut rows) = (BTreeMap::<usize, Vec<usize>>::new(), Vec::new());
    for index in keep.iter().map(|&index| index as usize) {
        let page = index.checked_sub(rule.sinks).map(|i| i / 64);
        match page.filter(|p| *p < stream.front || stream.sealed.contains(p)) {
            Some(page) => whole.entry(page).or_default().push(index),
            None => rows.push(stream.tokens[index]),
        }
    }
    let dead = Token { live: false, ..Token::new(u64::MAX, 0) };
    let sinks = rule.sinks.min(rows.len());
    new.tokens.extend(rows.drain(..sinks));
    if !whole.is_empty() {
        new.tokens.resize(rule.sinks, dead);
    }
    for (page, indices) in &whole {
        let first = rule.sinks + page * 64;
        new.tokens.extend(
            (first..first + 64)
                .map(|index| Token { live: indices.contains(&index), ..stream.tokens[index] }),
        );
    }
    new.tokens.extend(rows);
    new.front = whole.len();
    new.sealed = (0..if rule.window.is_some() { whole.len() } else { 0 }).collect();
    new
}

/// Whether a sequence may be rewound: nothing that it would read, or fill
/// further, has lost its 16-bit form.
fn allowed(seq: &MSeq, rules: &[Rule], new_len: usize) -> bool {
    seq.groups.iter().zip(rules).all(|(group, rule)| {
        let stream_allows = |(s, stream): (usize, &MStream)| {
            let len = stream.tokens.len();
            let Some(kept) = len.checked_sub(seq.len - new_len) else { return false };
            let sealed = stream.sealed.last().map_or(0, |last| last + 1);
            let pages = rule.pages(len);
            let inside_a_dead_page = pages.iter().enumerate().any(|(p, page)| {
                let full = if p == 0 { rule.sinks } else { PAGE_TOKENS };
                page.start < kept && kept < page.end && group.is_dead(s, page, full)
            });
            let sealed_for_it = sealed <= stream.bound(rule, kept);
            sealed_for_it && kept >= stream.floor && !inside_a_dead_page
        };
        let floor = group.compacted.unwrap_or(0).max(seq.attached);
        new_len >= floor && group.streams.iter().enumerate().all(stream_allows)
    })
}
