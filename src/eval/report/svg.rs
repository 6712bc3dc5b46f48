//! What the pictures share: colours that the page's style maps to light and dark, text.

use crate::error::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Lines and text; the style sheet replaces it by the page's own.
pub const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
/// Text that matters less, likewise.
pub const FAINT: RGBColor = RGBColor(0x66, 0x66, 0x66);
/// Grid lines, likewise.
pub const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
/// What the eye is to find; legible on white and on black.
pub const ACCENT: RGBColor = RGBColor(0x2a, 0x7d, 0xd4);
/// What it is to compare with.
pub const OTHER: RGBColor = RGBColor(0x8c, 0x8c, 0x8c);
/// Height of text in pixels.
pub const TEXT: i32 = 14;

pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws a picture of a size; `title` is what is read out in its place.
///
/// # Errors
/// [`Error::Unsupported`] with what the drawing library says.
pub fn draw(
    size: (u32, u32),
    title: &str,
    draw: impl FnOnce(&Area<'_>) -> Result<(), DrawError>,
) -> Result<String> {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
    let drawn = draw(&area).and_then(|()| area.present().map_err(failed));
    drop(area);
    drawn.map_err(|DrawError(what)| Error::Unsupported {
        what: format!("a picture ({what})"),
        remedy: "report this with the results".into(),
    })?;
    // Inline in a page: it shrinks with its column and needs a name.
    let (width, height) = size;
    let old = format!("<svg width=\"{width}\" height=\"{height}\"");
    let title = escape(title);
    let new = format!("<svg role=\"img\" aria-label=\"{title}\" style=\"width:{width}px\"");
    Ok(text.replacen(&old, &new, 1))
}

/// What the drawing library says.
#[derive(Debug)]
pub struct DrawError(String);

/// For `map_err`.
pub fn failed(error: impl std::fmt::Display) -> DrawError {
    DrawError(error.to_string())
}

/// Text in a colour, anchored.
pub fn text(color: RGBColor, x: HPos, y: VPos) -> TextStyle<'static> {
    // The backend writes 1 / 1.24 of a font's size.
    ("sans-serif", f64::from(TEXT) * 1.24).into_font().color(&color).pos(Pos::new(x, y))
}

/// About as wide as a browser draws it.
pub fn width(text: &str) -> i32 {
    (text.chars().count() as f64 * f64::from(TEXT) * 0.58) as i32
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;")
}
