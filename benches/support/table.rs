//! A small table for the terminal: figure, values, target, and whether the target was met.
// Printing is the purpose of a bench.
#![allow(clippy::print_stdout)]

/// The target of a figure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// The figure must not be larger.
    AtMost(f64),
    /// The figure must not be smaller.
    AtLeast(f64),
    /// No target: the figure is only shown for comparison.
    None,
}

/// Rows that are printed together, with aligned columns.
pub(crate) struct Table {
    columns: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table. `columns` stand between the figure's name and the target. The first of them
    /// is compared with the target.
    pub(crate) fn new(title: &str, columns: &[&str]) -> Self {
        let mut table = Self { columns: columns.len(), rows: Vec::new() };
        table.push(title, columns.iter().map(|name| (*name).to_owned()), "target", "");
        table
    }

    /// Adds a figure. Columns without a value stay empty.
    pub(crate) fn row(&mut self, figure: &str, values: &[f64], target: Target) {
        let held = values[0];
        let (wanted, met) = match target {
            Target::AtMost(most) => (format!("<= {most}"), Some(held <= most)),
            Target::AtLeast(least) => (format!(">= {least}"), Some(held >= least)),
            Target::None => (String::new(), None),
        };
        let verdict = met.map_or("", |met| if met { "met" } else { "missed" });
        self.push(figure, values.iter().map(|value| short(*value)), &wanted, verdict);
    }

    fn push(
        &mut self,
        figure: &str,
        values: impl Iterator<Item = String>,
        target: &str,
        verdict: &str,
    ) {
        let mut row = vec![figure.to_owned()];
        row.extend(values);
        row.resize(1 + self.columns, String::new());
        row.extend([target.to_owned(), verdict.to_owned()]);
        self.rows.push(row);
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        println!();
        for row in &self.rows {
            let cells = row.iter().enumerate().map(|(column, cell)| match column {
                0 => format!("{cell:<0$}", width(0)),
                _ => format!("{cell:>0$}", width(column)),
            });
            println!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }
}

/// Formats a value with three significant digits.
pub(crate) fn short(value: f64) -> String {
    match value {
        _ if value.is_nan() => String::from("-"),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
