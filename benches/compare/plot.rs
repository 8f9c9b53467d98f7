//! Draws `docs/comparison.svg`: for each important measure, a bar for each candidate.

use std::fs;

use crate::candidate::Candidate;
use crate::measure::{Better, Measure};
use crate::page::{docs, value_of};
use crate::report::Results;
use crate::scenario::Scenario;

// Sizes in pixels.
const PANEL_WIDTH: usize = 470;
const BAR_HEIGHT: usize = 18;
const NAME_WIDTH: usize = 110;
const BAR_WIDTH: f64 = 260.0;
/// The position of the value beside a bar of length 0.
const VALUE_LEFT: f64 = 115.0;
const MARGIN: usize = 20;
const TITLE_HEIGHT: usize = 26;
const COLUMNS: usize = 2;

/// Draws the plot and replaces the file.
pub(crate) fn write(all: &[Results]) {
    let panels: Vec<Panel> = all.iter().flat_map(Panel::of).collect();
    let panel_height =
        TITLE_HEIGHT + BAR_HEIGHT * all.first().map_or(0, |one| one.candidates().len()) + MARGIN;
    let width = MARGIN + COLUMNS * PANEL_WIDTH;
    let height = MARGIN + panels.len().div_ceil(COLUMNS) * panel_height;
    // The plot has its own background, so it looks the same on dark pages.
    let mut image = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (number, panel) in panels.iter().enumerate() {
        let left = MARGIN + number % COLUMNS * PANEL_WIDTH;
        let top = MARGIN + number / COLUMNS * panel_height;
        image += &format!("<g transform=\"translate({left} {top})\">\n{}</g>\n", panel.draw());
    }
    fs::write(docs("comparison.svg"), image + "</svg>\n").expect("write the plot");
}

/// The bars of one measure of one scenario.
struct Panel<'a> {
    scenario: Scenario,
    measure: &'a Measure,
    values: Vec<(Candidate, f64)>,
}

impl<'a> Panel<'a> {
    fn of(results: &'a Results) -> impl Iterator<Item = Self> {
        let scenario = results.scenario();
        let plotted = scenario.measures().iter().enumerate().filter(|(_, measure)| measure.plotted);
        plotted.map(move |(number, measure)| {
            let values =
                results.candidates().iter().copied().zip(results.medians(number)).collect();
            Self { scenario, measure, values }
        })
    }

    fn draw(&self) -> String {
        let wanted = if self.measure.better == Better::More { "more" } else { "less" };
        let title = format!("{}: {} ({wanted} is better)", self.scenario.name(), self.measure.name);
        let mut panel = format!("<text y=\"12\" font-weight=\"bold\">{title}</text>\n");
        let longest = self.values.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        for (number, (candidate, value)) in self.values.iter().enumerate() {
            let top = TITLE_HEIGHT + number * BAR_HEIGHT;
            let length = if value.is_nan() { 0.0 } else { value / longest * BAR_WIDTH };
            let colour = match candidate {
                Candidate::Handoffd(_) => "#2563a8",
                Candidate::Haproxy(_) | Candidate::Nginx | Candidate::SocketProxyd => "#9ab0c4",
                Candidate::Direct => "#d4d4d4",
            };
            panel += &format!(
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
                 <rect x=\"{NAME_WIDTH}\" y=\"{top}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\n\
                 <text x=\"{:.1}\" y=\"{}\">{}</text>\n",
                NAME_WIDTH - 6,
                top + BAR_HEIGHT - 6,
                candidate.name(),
                BAR_HEIGHT - 4,
                VALUE_LEFT + length,
                top + BAR_HEIGHT - 6,
                value_of(*value, self.measure),
            );
        }
        panel
    }
}
