//! What tests of steps through a cache have in common.

use kvfold::backend::{Geometry, KvGroup, Rope, StreamFormat};
use kvfold::cache::{GroupView, KvCache, RunKind};
use kvfold::codec::Codec;
use kvfold::codec::feedback::Feedback;
use kvfold::model::cache_config;
use std::sync::Arc;

/// Streams of as many formats as there are codes of different sizes and sorts.
pub const MIXED: &str = "mixed";

/// One layer with four sinks and two hot pages.
pub fn group(format: &str, head_dim: usize, kv_heads: usize) -> KvGroup {
    let mut group = KvGroup {
        layers: 1,
        kv_heads,
        geometry: Geometry::gqa(head_dim),
        format: if format == MIXED { "kf3.2" } else { format }.parse().unwrap(),
        streams: None,
        sinks: 4,
        hot_window: 128,
        rope: Some(Arc::new(rope(head_dim))),
        window: None,
    };
    if format == MIXED {
        // Queries of one direction, so that feedback matters.
        let direction = |i: usize| (i % 5) as f64 - 1.0;
        let moment = |i: usize| direction(i / head_dim) * direction(i % head_dim);
        let moment: Vec<_> = (0..head_dim * head_dim).map(moment).collect();
        let feedback = Arc::new(Feedback::new(&moment, head_dim));
        let formats = ["kf4", "kf2", "kf3.2", "kf3"].into_iter().enumerate().cycle();
        let stream = |(i, format): (usize, &str)| StreamFormat {
            format: format.parse().unwrap(),
            feedback: (i > 0).then(|| feedback.clone()),
        };
        group.streams = Some(formats.take(8 * kv_heads).map(stream).collect());
    }
    group
}

/// A cache of one group that is never full.
pub fn cache_of(group: &KvGroup) -> KvCache {
    KvCache::new(cache_config(std::slice::from_ref(group), 1 << 32)).unwrap()
}

/// The rotation of a Llama.
pub fn rope(head_dim: usize) -> Rope {
    let half = head_dim / 2;
    Rope { inv_freq: (0..half).map(|i| 10_000f64.powf(-(i as f64) / half as f64)).collect() }
}

/// Moves the sealed runs of a view by `shift` more positions.
pub fn relocate(view: &mut GroupView, shift: i32) {
    let views = match view {
        GroupView::Uniform(view) => std::slice::from_mut(view),
        GroupView::Ragged(views) => views.as_mut_slice(),
    };
    for run in views.iter_mut().flat_map(|v| &mut Arc::make_mut(v).runs) {
        if run.kind == RunKind::Sealed {
            run.shift += shift;
        }
    }
}

/// A number as a 16-bit type has it.
pub fn round(codec: Codec, x: f32) -> f32 {
    match codec {
        Codec::Bf16 => half::bf16::from_f32(x).to_f32(),
        _ => half::f16::from_f32(x).to_f32(),
    }
}
