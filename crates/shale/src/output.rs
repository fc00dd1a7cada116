//! Printing: for people a table, for programs JSON, YAML or names. Nothing else goes to stdout.

use std::io::Write as _;

use model::{Code, Problem};
use serde::Serialize;

use crate::grammar::Format;
use crate::yaml;

/// What can stand in a table.
pub(crate) trait Row {
    /// Titles of the columns; those after the bar only in `wide`.
    const COLUMNS: (&'static [&'static str], &'static [&'static str]);
    fn cells(&self) -> Vec<String>;
    fn name(&self) -> String;
}

/// Writes to stdout; a reader that went away is not an error.
pub(crate) fn print(text: &str) -> Result<(), Problem> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Problem::new(Code::IoError, format!("The output cannot be written: {e}.")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Prints a list.
pub(crate) fn list<T: Row + Serialize>(format: Format, rows: &[T]) -> Result<(), Problem> {
    let text = match format {
        Format::Table | Format::Wide => table(rows, format == Format::Wide),
        Format::Name => rows.iter().map(|row| row.name() + "\n").collect(),
        Format::Json => json(&rows)?,
        Format::Yaml => yaml(&rows)?,
    };
    print(&text)
}

/// Prints one object that has columns.
pub(crate) fn row<T: Row + Serialize>(format: Format, row: &T) -> Result<(), Problem> {
    let text = match format {
        Format::Table | Format::Wide => table(std::slice::from_ref(row), format == Format::Wide),
        Format::Name => row.name() + "\n",
        Format::Json => json(row)?,
        Format::Yaml => yaml(row)?,
    };
    print(&text)
}

/// Prints one object whose text for people is `human`.
pub(crate) fn object<T: Serialize>(
    format: Format,
    object: &T,
    human: impl FnOnce() -> String,
) -> Result<(), Problem> {
    let text = match format {
        Format::Table | Format::Wide | Format::Name => human(),
        Format::Json => json(object)?,
        Format::Yaml => yaml(object)?,
    };
    print(&text)
}

fn json<T: Serialize>(value: &T) -> Result<String, Problem> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|e| internal(&e))
}

fn yaml<T: Serialize>(value: &T) -> Result<String, Problem> {
    serde_json::to_value(value).map(|value| yaml::emit(&value)).map_err(|e| internal(&e))
}

fn internal(e: &serde_json::Error) -> Problem {
    Problem::new(Code::Internal, format!("The answer cannot be printed: {e}."))
}

fn table<T: Row>(rows: &[T], wide: bool) -> String {
    let (narrow, more) = T::COLUMNS;
    let titles: Vec<&str> = narrow.iter().chain(more.iter().filter(|_| wide)).copied().collect();
    let cells: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
    let mut text = String::new();
    let width = |at: usize| {
        let column = cells.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
        column.chain([titles[at].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let titles: Vec<String> = titles.into_iter().map(str::to_owned).collect();
    for row in std::iter::once(&titles).chain(&cells) {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pair(&'static str, &'static str);

    impl Row for Pair {
        const COLUMNS: (&'static [&'static str], &'static [&'static str]) = (&["A"], &["MORE"]);
        fn cells(&self) -> Vec<String> {
            vec![self.0.into(), self.1.into()]
        }
        fn name(&self) -> String {
            self.0.into()
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = [Pair("x", "1"), Pair("länger", "")];
        assert_eq!(table(&rows, false), "A\nx\nlänger\n");
        assert_eq!(table(&rows, true), "A       MORE\nx       1\nlänger\n");
        assert_eq!(table::<Pair>(&[], false), "A\n", "titles also without rows");
    }
}
