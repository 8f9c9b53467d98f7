//! A parser for times in flags and in the configuration file. A time is a number of seconds, or a
//! number with a unit.

use std::time::Duration;

use super::value::Expected;

/// The longest time that the parser accepts. A longer time probably has a mistyped unit.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Parses a time of at most 7 days, such as `500ms` or `2m`. A number without a unit means seconds.
pub(crate) fn parse_time(text: &str) -> Result<Duration, Expected> {
    let time = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text)
            .map_err(|_| "expected a time, as in 500ms, 30s or 2m")?,
    };
    at_most_a_week(time)
}

/// Parses a time as [`parse_time`] does, but refuses zero.
pub(crate) fn parse_timeout(text: &str) -> Result<Duration, Expected> {
    parse_time(text).and_then(not_zero)
}

pub(super) fn at_most_a_week(time: Duration) -> Result<Duration, Expected> {
    if time > LONGEST { Err("expected at most 7 days".into()) } else { Ok(time) }
}

/// Refuses zero for a timeout, because a timeout of zero would always expire at once.
pub(super) fn not_zero(time: Duration) -> Result<Duration, Expected> {
    if time.is_zero() { Err("expected more than zero".into()) } else { Ok(time) }
}

/// Checks that a time is valid for `TCP_KEEPIDLE`: whole seconds, at most 32767.
pub(super) fn keep_alive(time: Duration) -> Result<Duration, Expected> {
    let fits = time.subsec_nanos() == 0 && (1..=32767).contains(&time.as_secs());
    if fits {
        Ok(time)
    } else {
        Err("expected whole seconds, 1s to 9h: the kernel accepts no other value".into())
    }
}

/// Checks that a time is valid for `TCP_USER_TIMEOUT`: at least one millisecond, because 0 would
/// mean the kernel's default.
pub(super) fn user_timeout(time: Duration) -> Result<Duration, Expected> {
    if time < Duration::from_millis(1) { Err("expected at least 1ms".into()) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_seconds_or_a_number_with_a_unit_and_has_bounds() {
        assert_eq!(parse_time("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_time("1m 500ms"), Ok(Duration::from_millis(60_500)));
        assert_eq!(parse_time("7d"), Ok(LONGEST));
        assert!(
            parse_time("8d").is_err() && parse_time("soon").is_err() && parse_time("-1").is_err()
        );
        assert!(parse_time("0").is_ok() && parse_time("0").and_then(not_zero).is_err());
    }

    #[test]
    fn tcp_timeouts_are_limited_to_what_the_kernel_accepts() {
        let check = |text| parse_time(text).and_then(keep_alive).is_ok();
        assert!(check("1s") && check("32767s") && check("9h"));
        assert!(!check("0") && !check("1500ms") && !check("32768s"));
        assert!(
            user_timeout(Duration::from_millis(1)).is_ok()
                && user_timeout(Duration::from_micros(1)).is_err()
        );
    }
}
