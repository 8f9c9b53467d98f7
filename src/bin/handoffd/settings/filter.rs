//! A parser for log filters. A filter has a level for all targets, levels for individual targets,
//! or both.
//!
//! The parser of `tracing-subscriber` reads a misspelled level as the name of a target, and then
//! drops all other records. This parser reports such a word as an error. But a target that matches
//! no record is not an error, and has no effect on other records.

use tracing_subscriber::filter::{LevelFilter, Targets};

use super::value::Expected;

/// The valid form of a log filter, for error messages.
const EXPECTED: &str =
    "error, warn, info, debug, trace or off, or a module with a level, as in handoffd=debug";

/// Parses a log filter such as `debug` or `warn,handoffd::net=trace`. A level without a target
/// applies to all targets that the filter does not name. If the filter has no such level, `info`
/// applies.
pub(super) fn parse_log_filter(text: &str) -> Result<Targets, Expected> {
    let mut general = None;
    let mut targets: Vec<(&str, LevelFilter)> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (target, word) = match part.split_once('=') {
            Some((target, word)) => (Some(target.trim()), word.trim()),
            None => (None, part),
        };
        let level =
            level(word).ok_or_else(|| format!("{word:?} is not a level, expected {EXPECTED}"))?;
        let Some(target) = target else {
            if general.replace(level).is_some() {
                return Err(
                    format!("{text:?} has two levels without a module, expected one").into()
                );
            }
            continue;
        };
        if !is_target(target) {
            return Err(
                format!("{target:?} is not a module, expected for example handoffd=debug").into()
            );
        }
        if targets.iter().any(|(other, _)| *other == target) {
            return Err(format!("the module {target:?} is given twice, expected only once").into());
        }
        targets.push((target, level));
    }
    Ok(Targets::new().with_default(general.unwrap_or(LevelFilter::INFO)).with_targets(targets))
}

fn level(word: &str) -> Option<LevelFilter> {
    let levels = [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    levels.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, level)| level)
}

/// Returns whether `text` can be the target of a log record, that is, the path of a module.
fn is_target(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|letter| letter.is_alphanumeric() || "_-:.".contains(letter))
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::LevelFilter;

    use super::*;

    fn level_of(filter: &str, target: &str) -> LevelFilter {
        let targets = parse_log_filter(filter).unwrap();
        let levels = [
            tracing::Level::TRACE,
            tracing::Level::DEBUG,
            tracing::Level::INFO,
            tracing::Level::WARN,
            tracing::Level::ERROR,
        ];
        let most = levels.into_iter().find(|level| targets.would_enable(target, level));
        most.map_or(LevelFilter::OFF, LevelFilter::from_level)
    }

    #[test]
    fn a_filter_is_a_level_or_levels_of_targets() {
        for (filter, all, net) in [
            ("debug", LevelFilter::DEBUG, LevelFilter::DEBUG),
            ("WARN", LevelFilter::WARN, LevelFilter::WARN),
            ("off", LevelFilter::OFF, LevelFilter::OFF),
            ("error, handoffd::net = trace", LevelFilter::ERROR, LevelFilter::TRACE),
            ("handoffd::net=off", LevelFilter::INFO, LevelFilter::OFF),
        ] {
            assert_eq!(level_of(filter, "handoffd::handoff"), all, "{filter}");
            assert_eq!(level_of(filter, "handoffd::net::stream"), net, "{filter}");
        }
    }

    #[test]
    fn a_misspelled_target_silences_nothing_else() {
        assert_eq!(level_of("handofd=debug", "handoffd"), LevelFilter::INFO);
    }

    #[test]
    fn an_invalid_filter_is_refused() {
        for filter in [
            "",
            " ",
            ",",
            "inof",
            "info,",
            "info,debug",
            "handoffd",
            "handoffd=",
            "=info",
            "handoffd=loud",
            "3",
            "info handoffd=debug",
            "a=info,a=warn",
            "handoffd[{x}]=info",
            "handoffd=info=info",
        ] {
            assert!(parse_log_filter(filter).is_err(), "{filter:?}");
        }
    }
}
