//! A kernel that writes behind its block is found out.

use super::world::{World, devices, group};
use kvfold::backend::cuda::params::{GatherParams, GatherRow};
use kvfold::backend::driver::Launch;
use kvfold::cache::ClassKind;

#[test]
fn a_write_behind_a_block_is_found() {
    for device in devices(0) {
        let world = World::new(&device, vec![group("f16", 64, 1, 1)], 2, 0);
        let hot = u32::from(world.class(ClassKind::Hot).0);
        let ragged = u32::from(world.class(ClassKind::RaggedHot).0);
        let gather = |to_slot: u32| {
            let (from_arena, to_arena, to_block) = (hot, ragged, 1);
            let row = GatherRow { from_arena, to_arena, to_block, to_slot, ..Default::default() };
            let rows = device.upload(&[row], &world.stream).unwrap();
            let arenas = world.arenas.table();
            let params = GatherParams { rows: rows.address(), arenas, n_rows: 1, head_dim: 64 };
            // SAFETY: the rows live until `check_canaries` has read, and all slots that are
            // asked for lie in the block or its canary.
            unsafe { world.stream.launch("gather", Launch::new(1, 128), &params).unwrap() };
            let kept = world.arenas.check_canaries(&world.stream);
            drop(rows);
            kept
        };
        gather(63).unwrap();
        // A row too far: of the value half, it lies behind the block.
        let error = gather(64).unwrap_err().to_string();
        let behind = format!("byte 0 behind block 1 of class {ragged} changed");
        assert!(error.contains(&behind), "{error}");
    }
}
