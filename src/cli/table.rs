//! Aligned columns for people.

/// A table: a heading in upper case, then a line for each row; columns are as
/// wide as their widest cell, two spaces apart.
pub fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heading.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths);
        let padded = cells.map(|(cell, width)| format!("{cell:width$}"));
        let line = padded.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    let heading = heading.map(str::to_uppercase);
    std::iter::once(&heading).chain(rows).map(line).collect()
}
