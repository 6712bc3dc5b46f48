//! Python's `strftime`, as glibc writes it in the C locale.

use time::OffsetDateTime;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Formats a time. What is no directive stays as it is; `%z` and `%Z` are empty, as they are
/// for a `datetime.now()`, which knows no zone.
pub(super) fn strftime(format: &str, now: OffsetDateTime) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let inner = &rest[1..];
        // Flags, a width, and a modifier that means nothing in the C locale.
        let flags = inner.len() - inner.trim_start_matches(['-', '_', '0', '^', '#']).len();
        let (flags, inner) = inner.split_at(flags);
        let width = inner.len() - inner.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (width, inner) = inner.split_at(width);
        let inner = inner.strip_prefix(['E', 'O']).unwrap_or(inner);
        let directive = inner.chars().next();
        let length = rest.len() - inner.len() + directive.map_or(0, char::len_utf8);
        match directive.and_then(|d| field(d, now)) {
            Some(field) => out.push_str(&field.show(flags, width)),
            None => out.push_str(&rest[..length]),
        }
        rest = &rest[length..];
    }
    out + rest
}

/// What a directive gives.
enum Field {
    /// A number, its width, and what fills it.
    Number(i64, usize, char),
    /// A text, and whether `#` makes it small instead of large.
    Text(String, bool),
}

impl Field {
    fn show(self, flags: &str, width: &str) -> String {
        let width: Option<usize> = width.parse().ok().map(|w: usize| w.min(1024));
        let fill = flags.chars().rev().find(|c| "-_0".contains(*c));
        let (text, least, default) = match self {
            Self::Number(x, width, fill) => (x.to_string(), width, fill),
            Self::Text(text, small) => {
                let text = match flags.chars().rev().find(|c| "^#".contains(*c)) {
                    Some('#') if small => text.to_lowercase(),
                    Some(_) => text.to_uppercase(),
                    None => text,
                };
                (text, 0, ' ')
            }
        };
        let fill = match fill {
            Some('-') if width.is_none() => return text,
            Some('_') => ' ',
            Some('0') => '0',
            _ => default,
        };
        let missing = width.unwrap_or(least).saturating_sub(text.chars().count());
        fill.to_string().repeat(missing) + &text
    }
}

fn field(directive: char, now: OffsetDateTime) -> Option<Field> {
    let two = |x: u8| Some(Field::Number(i64::from(x), 2, '0'));
    let spaced = |x: u8| Some(Field::Number(i64::from(x), 2, ' '));
    let text = |text: &str| Some(Field::Text(text.to_owned(), false));
    let whole = |format: &str| Some(Field::Text(strftime(format, now), false));
    let (month, day) = (now.month() as u8, now.weekday().number_days_from_sunday());
    let twelve = (now.hour() + 11) % 12 + 1;
    let half = if now.hour() < 12 { "AM" } else { "PM" };
    let year = i64::from(now.year());
    let iso_year = i64::from(now.to_iso_week_date().0);
    match directive {
        'Y' => Some(Field::Number(year, 1, '0')),
        'y' => two((year.rem_euclid(100)) as u8),
        'C' => two((year / 100) as u8),
        'G' => Some(Field::Number(iso_year, 1, '0')),
        'g' => two((iso_year.rem_euclid(100)) as u8),
        'm' => two(month),
        'd' => two(now.day()),
        'e' => spaced(now.day()),
        'j' => Some(Field::Number(i64::from(now.ordinal()), 3, '0')),
        'B' => text(MONTHS[usize::from(month) - 1]),
        'b' | 'h' => text(&MONTHS[usize::from(month) - 1][..3]),
        'A' => text(DAYS[usize::from(day)]),
        'a' => text(&DAYS[usize::from(day)][..3]),
        'w' => Some(Field::Number(i64::from(day), 1, '0')),
        'u' => Some(Field::Number(i64::from(now.weekday().number_from_monday()), 1, '0')),
        'U' => two(now.sunday_based_week()),
        'W' => two(now.monday_based_week()),
        'V' => two(now.iso_week()),
        'H' => two(now.hour()),
        'k' => spaced(now.hour()),
        'I' => two(twelve),
        'l' => spaced(twelve),
        'M' => two(now.minute()),
        'S' => two(now.second()),
        'f' => Some(Field::Number(i64::from(now.microsecond()), 6, '0')),
        'p' => Some(Field::Text(half.to_owned(), true)),
        'P' => text(&half.to_lowercase()),
        's' => Some(Field::Number(now.unix_timestamp(), 1, '0')),
        'c' => whole("%a %b %e %H:%M:%S %Y"),
        'D' | 'x' => whole("%m/%d/%y"),
        'F' => whole("%Y-%m-%d"),
        'r' => whole("%I:%M:%S %p"),
        'R' => whole("%H:%M"),
        'T' | 'X' => whole("%H:%M:%S"),
        'n' => text("\n"),
        't' => text("\t"),
        'z' | 'Z' => text(""),
        '%' => text("%"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_directive_stays() {
        let now = OffsetDateTime::UNIX_EPOCH;
        for text in ["", "%", "100 %", "%Q", "%ü", "%-", "%5", "%_^", "%EQ"] {
            assert_eq!(strftime(text, now), text);
        }
        assert_eq!(strftime("%%%Y", now), "%1970");
        assert_eq!(strftime("%99999999999999999999d", now).trim_start_matches('0'), "1");
    }
}
