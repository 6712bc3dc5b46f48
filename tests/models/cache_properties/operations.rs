//! The operations, on the cache and on the model, and what must hold after each.

use std::collections::{BTreeMap, BTreeSet};

use kvfold::Error;
use kvfold::cache::{ClassKind, Compaction, PAGE_TOKENS, SeqId};

use super::model::{Flight, MGroup, MSeq, MStream, Rule, Seen, World};

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
            for (group, rule) in seq.groups.iter_mut().zip(&self.rules) {
                for stream in &mut group.streams {
                    let last_query = stream.tokens.len() + tokens.len() - 1;
                    stream.tokens.extend(tokens[..accepted].iter().map(|&token| (token, true)));
                    let kept = stream.tokens.len();
                    let bound = rule.bound(kept).min(rule.bound(last_query));
                    let pages = rule.pages(kept);
                    let alive = |p: &usize| !stream.is_dead(&pages[p + 1], PAGE_TOKENS);
                    stream.sealed = (0..bound).filter(alive).collect();
                    if group.compacted.is_none() {
                        stream.look_ahead(rule);
                    }
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
                let tokens = &group.streams[s.min(group.streams.len() - 1)].tokens;
                let share = mix(pick, s as u64) % 6;
                let kept = |&(index, token): &(usize, &(u64, bool))| {
                    token.1 && mix(pick ^ s as u64, index as u64) % 5 < share
                };
                tokens.iter().enumerate().filter(kept).map(|(index, _)| index as u32).collect()
            })
            .collect();
        let sealed = group.streams.iter().any(|stream| !stream.sealed.is_empty());
        match self.cache.compact(seq, g, &keep) {
            Ok(Compaction { frees, gathers }) => {
                assert!(!sealed && !model.busy);
                self.free(&frees);
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
                let model = self.seqs.get_mut(&seq).unwrap();
                let group = &mut model.groups[g];
                let pick = |(s, list): (usize, &Vec<u32>)| {
                    let tokens = &group.streams[s.min(group.streams.len() - 1)].tokens;
                    let kept = list.iter().map(|&index| tokens[index as usize]).collect();
                    MStream { tokens: kept, ..MStream::default() }
                };
                let streams = keep.iter().enumerate().map(pick).collect();
                *group = MGroup { compacted: Some(model.len), streams };
            }
            Err(error) => {
                seen.refused += 1;
                assert_eq!(format!("{before:?}"), format!("{:?}", self.cache));
                match error {
                    Error::Busy { .. } => assert!(model.busy),
                    Error::Sealed(_) => assert!(sealed),
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
        let name = group.compacted.map(|_| s);
        let stream = &mut group.streams[s];
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
                for &index in &indices {
                    stream.tokens[index as usize].1 = false;
                }
                let pages = self.rules[g].pages(stream.tokens.len());
                let dead: Vec<usize> = stream
                    .sealed
                    .iter()
                    .copied()
                    .filter(|p| stream.is_dead(&pages[p + 1], 64))
                    .collect();
                stream.sealed.retain(|p| !dead.contains(p));
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
            for stream in &group.streams {
                let rule = self.rules[g];
                for (p, page) in rule.pages(stream.tokens.len()).iter().enumerate() {
                    let full = if p == 0 { rule.sinks } else { PAGE_TOKENS };
                    sum += match p {
                        _ if page.is_empty() || stream.is_dead(page, full) => 0,
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
        let held = self.cache.held_bytes();
        let mut by_kind = BTreeMap::new();
        for block in self.memory.keys() {
            let desc = self.cache.classes()[usize::from(block.class.0)];
            *by_kind.entry(desc.kind).or_insert(0) += desc.block_bytes;
        }
        assert!(self.lazy || held == by_kind.values().sum::<u64>());
        for (kind, bytes) in self.cache.bytes_by_kind() {
            let found = by_kind.get(&kind).copied().unwrap_or(0);
            assert!(bytes == found || (self.lazy && bytes < found), "{bytes} of {found}");
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

    pub fn finish(&mut self) {
        while !self.flights.is_empty() {
            self.land(0, None);
        }
        for seq in self.seqs.keys().copied().collect::<Vec<_>>() {
            self.end(seq);
        }
        self.lazy = false;
        self.release();
        self.cache.audit().unwrap();
        assert_eq!((self.cache.held_bytes(), self.memory.len()), (0, 0));
    }
}

/// A hash good enough to scatter choices.
pub fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 20
}

/// Whether a sequence may be rewound: nothing that it would read, or fill
/// further, has lost its 16-bit form.
fn allowed(seq: &MSeq, rules: &[Rule], new_len: usize) -> bool {
    seq.groups.iter().zip(rules).all(|(group, rule)| {
        let stream_allows = |stream: &MStream| {
            let len = stream.tokens.len();
            let Some(kept) = len.checked_sub(seq.len - new_len) else { return false };
            let sealed = stream.sealed.last().map_or(0, |last| last + 1);
            let pages = rule.pages(len);
            let inside_a_dead_page = pages.iter().enumerate().any(|(p, page)| {
                let full = if p == 0 { rule.sinks } else { PAGE_TOKENS };
                page.start < kept && kept < page.end && stream.is_dead(page, full)
            });
            rule.bound(kept) >= sealed && kept >= stream.floor && !inside_a_dead_page
        };
        new_len >= group.compacted.unwrap_or(0) && group.streams.iter().all(stream_allows)
    })
}
