//! A recount of the books, for tests and for a server's self-check.

use std::collections::BTreeMap;

use super::class::{BlockRef, ClassId};
use super::kv_cache::KvCache;

impl KvCache {
    /// Counts every block and byte anew from the sequences and compares with
    /// the books. Takes time linear in the blocks.
    ///
    /// # Errors
    /// A line that names the first difference. While a step is in flight, the
    /// shared blocks that it replaces count as one more reference.
    pub fn audit(&self) -> Result<(), String> {
        let mut found: BTreeMap<BlockRef, u32> = BTreeMap::new();
        for seq in self.seqs.values() {
            for block in seq.references(&self.groups) {
                *found.entry(block).or_default() += 1;
            }
        }
        let mut bytes = 0;
        for (c, desc) in self.classes().iter().enumerate() {
            for (index, &refs) in self.pool.all_refs(c).iter().enumerate() {
                let block = BlockRef { class: ClassId(c as u16), index: index as u32 };
                let expected = found.remove(&block).unwrap_or(0);
                if refs != expected {
                    return Err(format!("{block:?}: {refs} references, {expected} found"));
                }
                bytes += if refs > 0 { desc.block_bytes } else { 0 };
            }
        }
        let sliding = self.groups.iter().enumerate().filter(|(_, group)| group.uniform.slides());
        for (g, group) in sliding {
            for seq in self.seqs.values() {
                seq.groups[g].streams[0].audit_positions(&group.uniform)?;
            }
        }
        if let Some(block) = found.keys().next() {
            return Err(format!("{block:?} was never allocated"));
        }
        let held = self.held_bytes();
        let (peak, idle, budget) = (self.peak_bytes(), self.idle_bytes(), self.budget());
        if held != bytes || held > peak || peak > budget || held + idle > budget {
            return Err(format!(
                "{held} bytes held, {bytes} found, peak {peak}, {idle} idle, budget {budget}"
            ));
        }
        self.pool.audit_idle()?;
        Ok(())
    }
}
