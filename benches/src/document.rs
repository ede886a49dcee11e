//! What the reports of all benchmarks are made of: tables, numbers, and the sections of BENCHMARKS.md.
//!
//! A Markdown table whose columns are filled up with blanks reads well anywhere, so a terminal and the document get the same text.

use anyhow::{Result, bail};

/// A table: the first row is its head.
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// With that head.
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        Self(vec![head.map(str::to_owned).to_vec()])
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.push(cells.to_vec());
    }

    /// The table as Markdown, its columns filled up with blanks.
    pub fn text(&self) -> String {
        let columns = self.0[0].len();
        let width = |column: usize| self.0.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in self.0.iter().enumerate() {
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                // Names to the left, numbers to the right.
                text += &if column == 0 { format!("| {cell:<width$} ") } else { format!("| {cell:>width$} ") };
            }
            text += "|\n";
            if index == 0 {
                for (column, &width) in widths.iter().enumerate() {
                    text += &format!("|{:-<1$}{2}", "", width + 1, if column == 0 { "-" } else { ":" });
                }
                text += "|\n";
            }
        }
        text
    }
}

/// Three digits that mean something, or more before the point.
pub fn number(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value >= 100.0 => grouped(value.round() as u64),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// With a comma before each three digits.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The middle of the numbers; of an even count, the mean of the two in the middle.
pub fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() {
        0 => None,
        even if even % 2 == 0 => Some((numbers[middle - 1] + numbers[middle]) / 2.0),
        _ => Some(numbers[middle]),
    }
}

/// The part of a document that a benchmark writes: what is between two lines that nobody else has.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// The line before it.
    pub begin: &'static str,
    /// The line behind it.
    pub end: &'static str,
}

impl Section {
    /// The document with that text in the section, which is added at its end if it has none yet.
    ///
    /// # Errors
    /// When the section's end is missing.
    pub fn put_into(self, document: &str, text: &str) -> Result<String> {
        let Self { begin, end } = self;
        let section = format!("{begin}\n{text}{end}\n");
        let Some((before, rest)) = document.split_once(begin) else {
            let gap = if document.is_empty() || document.ends_with("\n\n") { "" } else { "\n" };
            return Ok(format!("{document}{gap}{section}"));
        };
        let Some((_, after)) = rest.split_once(end) else {
            bail!("the document has the line {begin:?} but not {end:?}");
        };
        Ok(format!("{before}{section}{}", after.strip_prefix('\n').unwrap_or(after)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(123), "123");
        let shown = [0.7, 12.34, 1234.5].map(|value| number(Some(value)));
        assert_eq!(shown, ["0.70", "12.3", "1,235"]);
    }
}
