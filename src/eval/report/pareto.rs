//! Quality against bits, with the settings that nothing beats joined by a line.

use super::group::frontier;
use super::labels::places;
use super::svg::{ACCENT, DrawError, FAINT, GRID, INK, OTHER, draw, failed, text, width};
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
    /// Whether less is better, with 0 as the reference. Such values spread over orders of
    /// magnitude, so the axis is one of (signed) square roots.
    pub low_is_better: bool,
}

impl Axis<'_> {
    /// How far up a value stands.
    fn up(&self, y: f64) -> f64 {
        if self.low_is_better { y.signum() * y.abs().sqrt() } else { y }
    }
}

const SIZE: (u32, u32) = (1060, 440);
/// Bits where ticks may stand, and percents, the most wanted first.
const BITS: [f64; 14] = [2.0, 3.0, 4.0, 8.0, 16.0, 32.0, 2.5, 5.0, 6.0, 3.5, 12.0, 10.0, 1.0, 1.5];
const PERCENTS: [f64; 15] =
    [0.0, 1.0, 10.0, 100.0, 3.0, 30.0, 0.3, 0.1, 2.0, 5.0, 20.0, 50.0, 0.5, 200.0, 1000.0];

/// The picture: bits to the right (logarithmic), quality upwards.
///
/// # Errors
/// What the drawing library says.
pub fn pareto(title: &str, points: &[Point], axis: Axis<'_>) -> Result<String> {
    let sign = if axis.low_is_better { 1.0 } else { -1.0 };
    let best = frontier(&points.iter().map(|p| (p.bits, sign * p.y)).collect::<Vec<_>>());
    let scaled: Vec<Point> = (points.iter().cloned())
        .map(|p| Point {
            y: axis.up(p.y),
            range: p.range.map(|(low, high)| (axis.up(low), axis.up(high))),
            ..p
        })
        .collect();
    let points = scaled.as_slice();
    draw(SIZE, title, |area| {
        let (x, y) = ranges(points);
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .margin_right(24)
            .x_label_area_size(48)
            .y_label_area_size(64)
            .build_cartesian_2d(x.clone(), y.clone())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(0)
            .y_labels(0)
            .axis_style(INK)
            .y_desc(axis.name)
            .x_desc("stored bits an element (logarithmic)")
            .axis_desc_style(text(FAINT, HPos::Center, VPos::Center))
            .draw()
            .map_err(failed)?;
        let (left, bottom) = chart.backend_coord(&(x.start, y.start));
        let right = chart.backend_coord(&(x.end, y.start)).0;
        let across = |bits: &f64| {
            (x.contains(&bits.log2())).then(|| chart.backend_coord(&(bits.log2(), y.start)).0)
        };
        for (at, name) in ticks(&BITS, across, |name| width(name) + 10) {
            let mark = PathElement::new([(at, bottom), (at, bottom + 5)], INK);
            area.draw(&mark).map_err(failed)?;
            let style = text(INK, HPos::Center, VPos::Top);
            area.draw(&Text::new(name, (at, bottom + 9), style)).map_err(failed)?;
        }
        let up = |value: &f64| {
            (y.contains(&axis.up(*value)))
                .then(|| chart.backend_coord(&(x.start, axis.up(*value))).1)
        };
        let values = if axis.low_is_better {
            PERCENTS.iter().flat_map(|&p| [p, -p]).collect()
        } else {
            even(&y)
        };
        for (at, name) in ticks(&values, up, |_| 26) {
            let line = PathElement::new([(left, at), (right, at)], GRID);
            area.draw(&line).map_err(failed)?;
            let style = text(INK, HPos::Right, VPos::Center);
            area.draw(&Text::new(name, (left - 8, at), style)).map_err(failed)?;
        }
        let at = |p: &Point| (p.bits.log2(), p.y);
        let line = best.iter().map(|&index| at(&points[index]));
        chart.draw_series(LineSeries::new(line, ACCENT.stroke_width(2))).map_err(failed)?;
        // What the line joins lies on top.
        let mut order: Vec<usize> = (0..points.len()).filter(|i| !best.contains(i)).collect();
        order.extend(&best);
        for (index, point) in order.iter().map(|&index| (index, &points[index])) {
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
        let labels: Vec<&str> = points.iter().map(|p| p.label.as_str()).collect();
        for (label, place) in labels.iter().zip(places(&labels, &spots, &line, &frame)) {
            let style = text(INK, place.anchor, VPos::Center);
            area.draw(&Text::new((*label).to_owned(), place.at, style)).map_err(failed)?;
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
    let mut y = ends(points.iter().map(|p| p.y).collect(), 0.12, 0.3);
    let room = (y.end - y.start) / 2.0;
    let (low, high) = (y.start - room, y.end + room);
    for (from, to) in points.iter().filter_map(|p| p.range) {
        y = y.start.min(from.max(low))..y.end.max(to.min(high));
    }
    (x, y)
}

/// Those of `values` that have a place in the picture and, in the order given, room beside
/// the ones before: places and names.
fn ticks(
    values: &[f64],
    place: impl Fn(&f64) -> Option<i32>,
    room: impl Fn(&str) -> i32,
) -> Vec<(i32, String)> {
    let mut ticks: Vec<(i32, String)> = Vec::new();
    for value in values {
        // Of 0 there is only one.
        let name = (value + 0.0).to_string().replace('-', "−");
        let Some(at) = place(value) else { continue };
        let apart =
            |(other, taken): &(i32, String)| (at - other).abs() >= (room(&name) + room(taken)) / 2;
        if ticks.iter().all(apart) {
            ticks.push((at, name));
        }
    }
    ticks
}

/// About six round numbers within a range.
fn even(range: &std::ops::Range<f64>) -> Vec<f64> {
    let wanted = (range.end - range.start) / 6.0;
    let power = 10f64.powf(wanted.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|&s| s >= wanted);
    let step = step.unwrap_or(power * 10.0);
    let first = (range.start / step).ceil() as i64;
    (first..).map(|n| round(n as f64 * step)).take_while(|&value| value < range.end).collect()
}

/// Without what floating point leaves behind the sixth digit.
fn round(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_apart() {
        assert_eq!(even(&(38.0..104.0)), [40.0, 60.0, 80.0, 100.0]);
        assert_eq!(even(&(-0.25..0.75)), [-0.2, 0.0, 0.2, 0.4, 0.6]);
        let place = |value: &f64| (*value < 9.0).then_some(*value as i32 * 10);
        let names = |values: &[f64]| -> Vec<String> {
            ticks(values, place, |_| 20).into_iter().map(|tick| tick.1).collect()
        };
        assert_eq!(names(&[4.0, 5.0, 2.0, -0.0, 0.0, 9.0, -3.0]), ["4", "2", "0", "−3"]);
    }
}
