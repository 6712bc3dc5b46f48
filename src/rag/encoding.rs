//! From bytes to text, where it is certain what they mean; else what they look like.
//!
//! Certain is UTF-8, and UTF-16 and UTF-32 with a byte order mark. Of anything else one
//! can only guess, and a wrong guess makes wrong text without a word; so the guess goes
//! into the message, with the command that converts the file.

use super::skip::SkipReason;
use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};

/// How much is looked at to guess an encoding, in bytes.
const GUESSED: usize = 256 << 10;

/// What the beginning of a file says that the whole cannot be read for; `None` if the
/// rest is to be read.
pub(super) fn refused(start: &[u8]) -> Option<SkipReason> {
    match mark(start) {
        Some(_) => None,
        None => start.contains(&0).then(|| with_zeros(start)),
    }
}

/// The text of a whole file, without its byte order mark.
pub(super) fn decode(bytes: Vec<u8>) -> Result<String, SkipReason> {
    let text = match mark(&bytes) {
        Some(Mark::Utf8) => utf8(bytes[3..].to_vec()),
        Some(Mark::Utf16 { big }) => utf16(&bytes[2..], big),
        Some(Mark::Utf32 { big }) => utf32(&bytes[4..], big),
        None => utf8(bytes),
    }?;
    match text {
        _ if text.contains('\0') => Err(with_zeros(text.as_bytes())),
        // Japanese and Korean mail in seven bits.
        _ if text.contains("\u{1b}$B") || text.contains("\u{1b}$@") => {
            Err(SkipReason::Encoding("ISO-2022-JP"))
        }
        _ if text.contains("\u{1b}$)C") => Err(SkipReason::Encoding("ISO-2022-KR")),
        _ => Ok(text),
    }
}

enum Mark {
    Utf8,
    Utf16 { big: bool },
    Utf32 { big: bool },
}

fn mark(bytes: &[u8]) -> Option<Mark> {
    match bytes {
        [0xef, 0xbb, 0xbf, ..] => Some(Mark::Utf8),
        [0xff, 0xfe, 0, 0, ..] => Some(Mark::Utf32 { big: false }),
        [0, 0, 0xfe, 0xff, ..] => Some(Mark::Utf32 { big: true }),
        [0xff, 0xfe, ..] => Some(Mark::Utf16 { big: false }),
        [0xfe, 0xff, ..] => Some(Mark::Utf16 { big: true }),
        _ => None,
    }
}

fn utf8(bytes: Vec<u8>) -> Result<String, SkipReason> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        if is_binary(bytes) {
            return SkipReason::Binary;
        }
        let (mut right, mut wrong) = (0, 0);
        for chunk in bytes.utf8_chunks() {
            right += chunk.valid().chars().filter(|c| !c.is_ascii()).count();
            wrong += usize::from(!chunk.invalid().is_empty());
        }
        if right > wrong {
            return SkipReason::Broken { encoding: "UTF-8", line: line(&bytes[..at]) };
        }
        let from = at.saturating_sub(GUESSED / 2);
        let part = &bytes[from..bytes.len().min(from + GUESSED)];
        let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
        detector.feed(part, true);
        SkipReason::Encoding(detector.guess(None, Utf8Detection::Deny).name())
    })
}

fn utf16(bytes: &[u8], big: bool) -> Result<String, SkipReason> {
    let unit = if big { u16::from_be_bytes } else { u16::from_le_bytes };
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut text = String::with_capacity(bytes.len() / 2);
    for c in char::decode_utf16(pairs.iter().map(|pair| unit(*pair))) {
        text.push(c.map_err(|_| broken("UTF-16", &text))?);
    }
    if rest.is_empty() { Ok(text) } else { Err(broken("UTF-16", &text)) }
}

fn utf32(bytes: &[u8], big: bool) -> Result<String, SkipReason> {
    let unit = if big { u32::from_be_bytes } else { u32::from_le_bytes };
    let (quads, rest) = bytes.as_chunks::<4>();
    let mut text = String::with_capacity(bytes.len() / 4);
    for quad in quads {
        text.push(char::from_u32(unit(*quad)).ok_or_else(|| broken("UTF-32", &text))?);
    }
    if rest.is_empty() { Ok(text) } else { Err(broken("UTF-32", &text)) }
}

fn broken(encoding: &'static str, before: &str) -> SkipReason {
    SkipReason::Broken { encoding, line: line(before.as_bytes()) }
}

/// The line that comes after `before`, counted from 1.
fn line(before: &[u8]) -> usize {
    1 + before.iter().filter(|&&b| b == b'\n').count()
}

/// What bytes with zeros among them are.
fn with_zeros(bytes: &[u8]) -> SkipReason {
    if let Some(name) = unmarked_utf16(bytes) {
        return SkipReason::Encoding(name);
    }
    let zeros = bytes.iter().filter(|&&b| b == 0).count();
    let first = bytes.iter().position(|&b| b == 0).unwrap_or(0);
    // A log after a crash, say: text, with zeros in it.
    let text = match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    match text && zeros * 20 <= bytes.len() && !is_binary(bytes) {
        true => SkipReason::Zeros { line: line(&bytes[..first]) },
        false => SkipReason::Binary,
    }
}

/// Whether control characters, zeros aside, are more than a text has.
fn is_binary(bytes: &[u8]) -> bool {
    let control = |b: &u8| matches!(b, 1..=7 | 14..=26 | 28..=31);
    bytes.iter().filter(|b| control(b)).count() * 50 > bytes.len()
}

/// The order of bytes of UTF-16 without a mark, of which Latin letters make every second
/// byte zero.
fn unmarked_utf16(bytes: &[u8]) -> Option<&'static str> {
    let (pairs, _) = bytes.as_chunks::<2>();
    let is = |unit: fn([u8; 2]) -> u16| {
        let letter = |c: &char| c.is_alphanumeric() || c.is_whitespace() || c.is_ascii_graphic();
        let all = char::decode_utf16(pairs.iter().map(|pair| unit(*pair)));
        let (mut good, mut ascii) = (0, 0);
        for c in all.filter_map(Result::ok) {
            good += usize::from(letter(&c));
            ascii += usize::from(c.is_ascii() && letter(&c));
        }
        (pairs.len() >= 4 && good * 10 >= pairs.len() * 9 && ascii * 20 >= pairs.len())
            .then_some(ascii)
    };
    match (is(u16::from_le_bytes), is(u16::from_be_bytes)) {
        (None, None) => None,
        (little, big) if little >= big => Some("UTF-16LE"),
        _ => Some("UTF-16BE"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(text: &str, mark: bool, big: bool) -> Vec<u8> {
        let text = if mark { format!("\u{feff}{text}") } else { text.to_owned() };
        let bytes = |unit: u16| if big { unit.to_be_bytes() } else { unit.to_le_bytes() };
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn a_byte_order_mark_says_what_it_is() {
        for text in ["The comet.\r\n", "ключ 密钥 🦀\n", ""] {
            for big in [false, true] {
                assert_eq!(decode(units(text, true, big)).unwrap(), text);
                let wide = format!("\u{feff}{text}");
                let bytes = |c: char| {
                    let unit = u32::from(c);
                    if big { unit.to_be_bytes() } else { unit.to_le_bytes() }
                };
                assert_eq!(decode(wide.chars().flat_map(bytes).collect()).unwrap(), text);
            }
            assert_eq!(decode(format!("\u{feff}{text}").into_bytes()).unwrap(), text);
        }
    }

    #[test]
    fn what_is_broken_is_named_with_its_line() {
        let mut half = units("one\ntwo", true, false);
        half.pop();
        let mut lone = units("one\ntwo\n", true, true);
        lone.extend([0xd8, 0, 0, b'x']);
        for (bytes, encoding, at) in [
            (half, "UTF-16", 2),
            (lone, "UTF-16", 3),
            (b"\xff\xfe\0\0a\0\0\0\0\0\x11\0".to_vec(), "UTF-32", 1),
            (b"caf\xc3\xa9\nna\xc3\xafve\nth\xe9\n".to_vec(), "UTF-8", 3),
            (b"caf\xc3\xa9, th\xc3\xa9, na\xc3".to_vec(), "UTF-8", 1),
        ] {
            assert_eq!(decode(bytes), Err(SkipReason::Broken { encoding, line: at }));
        }
    }

    #[test]
    fn other_encodings_are_guessed_and_not_read() {
        let japanese = b"\x82\xb1\x82\xcc\x83J\x83M\x82\xcd\x83A\x83\x93\x83i\x82\xaa\x8c\xa9\x82\xc2\x82\xaf\x82\xbd\x81B";
        let chinese = b"\xb1\xa3\xcf\xd5\xbf\xe2\xb5\xc4\xc3\xdc\xd4\xbf\xca\xc7\xcb\xc4\xb0\xcb\xd2\xbb\xce\xe5\xa1\xa3";
        let russian =
            b"\xca\xeb\xfe\xf7 \xeb\xe5\xe6\xe8\xf2 \xef\xee\xe4 \xea\xe0\xec\xed\xe5\xec.";
        for (bytes, name) in [
            (&b"Le caf\xe9 de la gare, d\xe9j\xe0 ferm\xe9."[..], "windows-1252"),
            (japanese, "Shift_JIS"),
            (chinese, "GBK"),
            (russian, "windows-1251"),
            (b"\x1b$B$3$l\x1b(B", "ISO-2022-JP"),
        ] {
            assert_eq!(decode(bytes.to_vec()), Err(SkipReason::Encoding(name)));
        }
        for (big, name) in [(false, "UTF-16LE"), (true, "UTF-16BE")] {
            for text in ["The comet was found.\r\n", "密钥 is 4815, 在这里\n"] {
                let found = refused(&units(text, false, big));
                assert_eq!(found, Some(SkipReason::Encoding(name)), "{text}");
            }
        }
    }

    #[test]
    fn zeros_in_a_text_are_told_from_binary_files() {
        let log = format!("{}\n\0{}", "one line\n".repeat(20), "another");
        assert_eq!(refused(log.as_bytes()), Some(SkipReason::Zeros { line: 22 }));
        for bytes in [&b"\0\x01"[..], b"a\0b", b"\0\0\0\0\0\0\0\0", b"\x01\x02\0\x04\x05\x06\x07\0"]
        {
            assert_eq!(refused(bytes), Some(SkipReason::Binary));
        }
        let noise: Vec<u8> =
            (1..4000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 | 1).collect();
        assert_eq!(decode(noise), Err(SkipReason::Binary));
    }
}
