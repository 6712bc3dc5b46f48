//! Quality against bits, with the settings that nothing beats joined by a line.

use super::group::frontier;
use super::svg::{ACCENT, DrawError, FAINT, GRID, INK, OTHER, TEXT, draw, failed, text, width};
use crate::error::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

/// A setting.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its name.
    pub label: String,
    /// Bits an element.
    pub bits: f64,
    /// Its quality, in the axis' unit.
    pub y: f64,
    /// The ends of its interval.
    pub range: Option<(f64, f64)>,
}

/// What is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Axis<'a> {
    /// What y is.
    pub name: &'a str,
    /// Whether less is better.
    pub low_is_better: bool,
}

const SIZE: (u32, u32) = (1060, 440);
/// Where ticks may stand.
const TICKS: [f64; 14] = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 32.0];

/// The picture: bits to the right (logarithmic), quality upwards.
///
/// # Errors
/// What the drawing library says.
pub fn pareto(title: &str, points: &[Point], axis: Axis<'_>) -> Result<String> {
    let sign = if axis.low_is_better { 1.0 } else { -1.0 };
    let best = frontier(&points.iter().map(|p| (p.bits, sign * p.y)).collect::<Vec<_>>());
    draw(SIZE, title, |area| {
        let (x, y) = ranges(points);
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .margin_right(24)
            .x_label_area_size(48)
            .y_label_area_size(64)
            .build_cartesian_2d(x.clone(), y.clone())
            .map_err(failed)?;
        let digits = usize::from(y.end - y.start < 10.0);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .y_labels(6)
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(text(INK, HPos::Right, VPos::Center))
            .y_label_formatter(&|y| format!("{y:.digits$}"))
            .y_desc(axis.name)
            .x_desc("stored bits an element (logarithmic)")
            .axis_desc_style(text(FAINT, HPos::Center, VPos::Center))
            .draw()
            .map_err(failed)?;
        // Ticks at bits that people know, where the ones before leave room.
        let bottom = chart.backend_coord(&(x.start, y.start)).1;
        let mut free = i32::MIN;
        for tick in TICKS.into_iter().filter(|bits| x.contains(&bits.log2())) {
            let at = chart.backend_coord(&(tick.log2(), y.start)).0;
            let name = tick.to_string();
            if at - width(&name) / 2 < free {
                continue;
            }
            free = at + width(&name) / 2 + 8;
            let mark = PathElement::new([(at, bottom), (at, bottom + 5)], INK);
            area.draw(&mark).map_err(failed)?;
            let style = text(INK, HPos::Center, VPos::Top);
            area.draw(&Text::new(name, (at, bottom + 9), style)).map_err(failed)?;
        }
        let at = |p: &Point| (p.bits.log2(), p.y);
        let line = best.iter().map(|&index| at(&points[index]));
        chart.draw_series(LineSeries::new(line, ACCENT.stroke_width(2))).map_err(failed)?;
        for (index, point) in points.iter().enumerate() {
            let color = if best.contains(&index) { ACCENT } else { OTHER };
            if let Some((low, high)) = point.range {
                let (low, high) = (low.max(y.start), high.min(y.end));
                let bar = [(point.bits.log2(), low), (point.bits.log2(), high)];
                let bar = PathElement::new(bar, color.mix(0.6));
                chart.draw_series([bar]).map_err(failed)?;
            }
            chart.draw_series([Circle::new(at(point), 5, color.filled())]).map_err(failed)?;
        }
        let frame = chart.plotting_area().get_pixel_range();
        let spots: Vec<(i32, i32)> = points.iter().map(|p| chart.backend_coord(&at(p))).collect();
        let line: Vec<(i32, i32)> = best.iter().map(|&index| spots[index]).collect();
        for (point, place) in points.iter().zip(places(points, &spots, &line, &frame)) {
            let style = text(INK, place.anchor, VPos::Center);
            area.draw(&Text::new(point.label.clone(), place.at, style)).map_err(failed)?;
        }
        Ok::<(), DrawError>(())
    })
}

/// The axes' ends, with room for labels.
fn ranges(points: &[Point]) -> (std::ops::Range<f64>, std::ops::Range<f64>) {
    let ends = |values: Vec<f64>, room: f64, least: f64| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let room = ((high - low) * room).max(least);
        low - room..high + room
    };
    let x = ends(points.iter().map(|p| p.bits.log2()).collect(), 0.10, 0.25);
    // Wide intervals may leave the picture, points may not.
    let mut y = ends(points.iter().map(|p| p.y).collect(), 0.12, 0.5);
    let room = (y.end - y.start) / 2.0;
    let (low, high) = (y.start - room, y.end + room);
    for (from, to) in points.iter().filter_map(|p| p.range) {
        y = y.start.min(from.max(low))..y.end.max(to.min(high));
    }
    (x, y)
}

/// A box around a text: left, top, right, bottom.
type Frame = (i32, i32, i32, i32);

struct Place {
    at: (i32, i32),
    anchor: HPos,
}

/// Where labels go: beside their point, where they cover neither another label nor
/// another point nor the line, as far as possible.
fn places(
    points: &[Point],
    spots: &[(i32, i32)],
    line: &[(i32, i32)],
    frame: &(std::ops::Range<i32>, std::ops::Range<i32>),
) -> Vec<Place> {
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
    for (point, &(x, y)) in points.iter().zip(spots) {
        let (wide, half) = (width(&point.label), TEXT / 2 + 1);
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
            places.push(Place { at: (x, y), anchor });
        }
    }
    places
}

fn overlap(a: Frame, b: Frame) -> bool {
    a.0 < b.2 && b.0 < a.2 && a.1 < b.3 && b.1 < a.3
}
