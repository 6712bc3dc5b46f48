//! Where in the context things are found: mean scores by length and depth.

use super::svg::{DrawError, FAINT, INK, draw, failed, text};
use crate::error::Result;
use crate::eval::Trial;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use std::collections::{BTreeMap, BTreeSet};

/// Pixels of a cell.
const CELL: (i32, i32) = (62, 34);
/// Room for the names of rows, and of columns.
const EDGE: (i32, i32) = (64, 52);

/// The picture of trials that know a depth; `None` if they are all at one place.
///
/// # Errors
/// What the drawing library says.
pub fn heat(title: &str, trials: &[Trial]) -> Result<Option<String>> {
    let mut sums: BTreeMap<(usize, usize), (f64, usize)> = BTreeMap::new();
    for trial in trials {
        if let Some(depth) = trial.depth {
            let sum = sums.entry((depth, trial.length)).or_default();
            *sum = (sum.0 + trial.score, sum.1 + 1);
        }
    }
    if sums.len() < 2 {
        return Ok(None);
    }
    let depths: BTreeSet<usize> = sums.keys().map(|key| key.0).collect();
    let lengths: BTreeSet<usize> = sums.keys().map(|key| key.1).collect();
    let (columns, rows) = (lengths.len() as i32, depths.len() as i32);
    let size = (EDGE.0 + columns * CELL.0 + 12, rows * CELL.1 + EDGE.1 + 8);
    draw((size.0.max(190) as u32, size.1 as u32), title, |area| {
        let put = |what: String, at: (i32, i32), color: RGBColor, x: HPos| {
            area.draw(&Text::new(what, at, text(color, x, VPos::Center))).map_err(failed)
        };
        for (row, depth) in depths.iter().enumerate() {
            let top = 4 + row as i32 * CELL.1;
            put(format!("{depth} %"), (EDGE.0 - 8, top + CELL.1 / 2), INK, HPos::Right)?;
            for (column, length) in lengths.iter().enumerate() {
                let left = EDGE.0 + column as i32 * CELL.0;
                let Some((sum, count)) = sums.get(&(*depth, *length)) else { continue };
                let score = sum / *count as f64;
                let corners = [(left, top), (left + CELL.0 - 2, top + CELL.1 - 2)];
                let fill = color(score);
                area.draw(&Rectangle::new(corners, fill.filled())).map_err(failed)?;
                let middle = (left + CELL.0 / 2 - 1, top + CELL.1 / 2 - 1);
                put(format!("{:.0}", score * 100.0), middle, on(fill), HPos::Center)?;
            }
        }
        let bottom = 4 + rows * CELL.1;
        for (column, length) in lengths.iter().enumerate() {
            let middle = EDGE.0 + column as i32 * CELL.0 + CELL.0 / 2;
            put(length.to_string(), (middle, bottom + 12), INK, HPos::Center)?;
        }
        put("tokens".into(), (EDGE.0 + columns * CELL.0 / 2, bottom + 34), FAINT, HPos::Center)?;
        put("depth".into(), (EDGE.0 - 8, bottom + 12), FAINT, HPos::Right)?;
        Ok::<(), DrawError>(())
    })
    .map(Some)
}

/// From orange (0) by pale (a half) to blue (1), which nearly all eyes tell apart.
fn color(score: f64) -> RGBColor {
    const STOPS: [[f64; 3]; 3] = [[190.0, 88.0, 10.0], [246.0, 238.0, 222.0], [33.0, 102.0, 172.0]];
    let place = score.clamp(0.0, 1.0) * 2.0;
    let from = if place < 1.0 { 0 } else { 1 };
    let share = place - from as f64;
    let mix = |i: usize| STOPS[from][i] + (STOPS[from + 1][i] - STOPS[from][i]) * share;
    RGBColor(mix(0) as u8, mix(1) as u8, mix(2) as u8)
}

/// Black or white, whichever is read better on a colour.
fn on(RGBColor(r, g, b): RGBColor) -> RGBColor {
    let light = 0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b);
    if light > 150.0 { BLACK } else { WHITE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_run_from_end_to_end() {
        assert_eq!(color(0.0), RGBColor(190, 88, 10));
        assert_eq!(color(0.5), RGBColor(246, 238, 222));
        assert_eq!(color(7.0), RGBColor(33, 102, 172));
        assert_eq!((on(color(0.5)), on(color(1.0))), (BLACK, WHITE));
    }

    #[test]
    fn one_place_makes_no_map() {
        let trial = |depth, length| Trial { depth, length, ..Trial::default() };
        assert!(heat("t", &[trial(None, 1), trial(None, 2)]).unwrap().is_none());
        assert!(heat("t", &[trial(Some(5), 1), trial(Some(5), 1)]).unwrap().is_none());
        let picture = heat("a \"b\"", &[trial(Some(5), 64), trial(Some(50), 64)]).unwrap().unwrap();
        assert!(picture.contains("50 %") && picture.contains("a &quot;b&quot;"), "{picture}");
    }
}
