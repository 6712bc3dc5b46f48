//! Names beside points, clear of each other.

use super::svg::{TEXT, width};
use plotters::style::text_anchor::HPos;

/// A box around a text: left, top, right, bottom.
type Frame = (i32, i32, i32, i32);

/// Where a label is anchored, in pixels.
pub struct LabelPlace {
    /// Right and down.
    pub at: (i32, i32),
    /// Which end of the text is there.
    pub anchor: HPos,
}

/// Where labels go: beside their point, where they cover neither another label nor
/// another point nor the line, as far as possible. `spots` are the points' pixels, `line`
/// its corners, `frame` the picture's inside.
pub fn places(
    labels: &[&str],
    spots: &[(i32, i32)],
    line: &[(i32, i32)],
    frame: &(std::ops::Range<i32>, std::ops::Range<i32>),
) -> Vec<LabelPlace> {
    let mut taken: Vec<Frame> = spots.iter().map(|&(x, y)| (x - 6, y - 6, x + 6, y + 6)).collect();
    // The line as a row of dots.
    for pair in line.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let steps = (to.0 - from.0).abs().max((to.1 - from.1).abs()) / 4;
        for step in 0..steps {
            let at = |a: i32, b: i32| a + (b - a) * step / steps;
            let (x, y) = (at(from.0, to.0), at(from.1, to.1));
            taken.push((x - 1, y - 1, x + 1, y + 1));
        }
    }
    let mut places = Vec::new();
    for (label, &(x, y)) in labels.iter().zip(spots) {
        let (wide, half) = (width(label), TEXT / 2 + 1);
        let mut candidates = Vec::new();
        for up in [0, -16, 16, -30, 30, -44, 44] {
            let beside = if up == 0 { 10 } else { 6 };
            candidates.push((HPos::Left, x + beside, y + up));
            candidates.push((HPos::Right, x - beside, y + up));
        }
        let frame_of = |anchor: &HPos, x: i32, y: i32| match anchor {
            HPos::Left => (x, y - half, x + wide, y + half),
            _ => (x - wide, y - half, x, y + half),
        };
        let cost = |anchor: &HPos, x: i32, y: i32| {
            let it = frame_of(anchor, x, y);
            let outside = it.0 < frame.0.start
                || it.2 > frame.0.end + 20
                || it.1 < frame.1.start
                || it.3 > frame.1.end;
            taken.iter().filter(|other| overlap(it, **other)).count() + usize::from(outside) * 10
        };
        let best = candidates.into_iter().min_by_key(|(anchor, x, y)| cost(anchor, *x, *y));
        if let Some((anchor, x, y)) = best {
            taken.push(frame_of(&anchor, x, y));
            places.push(LabelPlace { at: (x, y), anchor });
        }
    }
    places
}

fn overlap(a: Frame, b: Frame) -> bool {
    a.0 < b.2 && b.0 < a.2 && a.1 < b.3 && b.1 < a.3
}
