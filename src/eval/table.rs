//! Aligned plain text.

/// Lays out a table: the first column to the left, the others to the right, two
/// spaces between, a rule under the header. A short row is filled with blanks.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
    let widths: Vec<usize> = (header.iter().enumerate())
        .map(|(column, title)| {
            let cells = rows.iter().map(|row| cell(row, column).chars().count());
            cells.chain([title.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: Vec<String>| {
        let mut line = String::new();
        for (column, (cell, &width)) in cells.iter().zip(&widths).enumerate() {
            match column {
                0 => line += &format!("{cell:<width$}"),
                _ => line += &format!("  {cell:>width$}"),
            }
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut out = line(header.iter().map(|&title| title.to_owned()).collect());
    out += &line(widths.iter().map(|&width| "-".repeat(width)).collect());
    for row in rows {
        out += &line((0..header.len()).map(|column| cell(row, column)).collect());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["f16".into(), "10.5".into()], vec!["kivi2 ±".into()]];
        assert_eq!(
            table(&["kv", "ppl"], &rows),
            "kv        ppl\n-------  ----\nf16      10.5\nkivi2 ±\n"
        );
    }
}
