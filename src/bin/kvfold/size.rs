//! Sizes in bytes, as people write and read them.

/// Parses `64MB`, `1.5 GiB`, `4096`: decimal and binary units.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(format!("\"{text}\" is not a number of bytes, such as 64MB"));
    }
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1u64 << 30,
        _ => {
            return Err(format!(
                "unknown unit \"{}\"; use B, kB, MB, GB, KiB, MiB, GiB",
                unit.trim()
            ));
        }
    };
    match number.parse::<f64>() {
        Ok(n) if n.is_finite() => Ok((n * factor as f64) as u64),
        _ => Err(format!("\"{number}\" is not a number of bytes, such as 64MB")),
    }
}

/// `12.3 MB`.
pub fn show(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("64MB"), Ok(64_000_000));
        assert_eq!(parse("1.5 GiB"), Ok(3 << 29));
        assert!(parse("64 parsecs").unwrap_err().contains("parsecs"));
        assert!(parse("lots").unwrap_err().contains("64MB"));
        assert!(parse("-5").unwrap_err().contains("64MB"));
        assert_eq!((show(999), show(12_340_000)), ("999 B".into(), "12.3 MB".into()));
    }
}
