//! Tests of the configuration syntax: every error has a position.
//!
//! `config_file` tests that the daemon applies the settings. Unit tests of the daemon compare the
//! settings with the flags and with the documented example.

use std::fs;

use crate::support::Refusal;

/// Returns a valid proxy listener `web` of 4 lines, followed by these lines.
fn proxied(lines: &str) -> String {
    format!("[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = ['@b']\n{lines}")
}

#[test]
fn every_error_has_a_line_and_a_column() {
    let echo = |lines: &str| format!("[listener.web]\naddress = '@a'\nservice = 'echo'\n{lines}");
    let cases = [
        // Invalid TOML.
        ("bake", "1:5: key with no value, expected `=`"),
        ("# one\n\nbake = '1s", "3:11: invalid literal string"),
        ("bake = 1\nbake = 2", "2:1: bake is given twice, expected only once"),
        ("bake = 1\n\n[listener.web]\n[listener.web]\n", "4:11: web is given twice"),
        // Invalid TOML values.
        ("bake = no", "1:8: bad value no: expected text in quotes, a number, true or false"),
        ("bake = no # not now\nx = 1", "1:8: bad value no: expected text in quotes"),
        ("bake=info", "1:6: bad value info: expected text in quotes"),
        ("bake = 1s", "1:8: bad value 1s: expected text in quotes"),
        ("bake = 5 s", "1:8: bad value 5 s: expected text in quotes"),
        ("bake = null", "1:8: bad value null: expected text in quotes"),
        ("carry = True", "1:9: bad value True: expected text in quotes, a number, true or false"),
        ("carry = on", "1:9: bad value on: expected text in quotes, a number, true or false"),
        ("bake = 1,5", "1:8: bad value 1,5: expected text in quotes"),
        ("bake = 007", "1:8: bad value 007: expected text in quotes"),
        ("bake = 0x", "1:8: bad value 0x: expected text in quotes"),
        (
            "bake = 99999999999999999999",
            "1:8: invalid value: integer `99999999999999999999`, expected a time",
        ),
        ("bake = “1s”", "1:8: bad value “1s”: expected text in quotes"),
        ("bake = ", "1:7: the value is missing: expected text in quotes"),
        ("bake = \"1s\nready_timeout = 2", "1:11: invalid basic string, expected `\"`"),
        ("bake = \"1\ns\"", "1:10: invalid basic string, expected `\"`"),
        (
            "[listener.web]\naddress = 127.0.0.1:80",
            "2:11: bad value 127.0.0.1:80: expected text in quotes",
        ),
        ("[listener.web]\naddress = [::1]:80", "2:11: bad value [::1]:80: expected text in quotes"),
        ("[listener.web]\nupstreams = [app, 'b']", "2:14: bad value app: expected text in quotes"),
        (
            "[listener.web]\nupstreams = [\n  'a',\n  1.2.3.4:80,\n]",
            "4:3: bad value 1.2.3.4:80: expected text in",
        ),
        ("bake = no\ncarry = yes\n[listener.web", "1:8: bad value no: expected text in quotes"),
        // General settings.
        ("  nope = 1", "1:3: unknown field `nope`, expected one of `ready_timeout`, `bake`"),
        ("\"new\\nline\" = 1", "1:1: unknown field `new\\nline`"),
        ("ready_timeout = 'soon'", "1:17: bad time \"soon\": expected a time, as in 500ms"),
        ("bake = -1", "1:8: invalid value: integer `-1`, expected a time"),
        ("bake = 1.5", "1:8: invalid type: floating point `1.5`, expected a time"),
        ("bake = 2026-11-25", "1:8: invalid type: table or date, expected a time"),
        ("drain_timeout = '8d'", "1:17: bad time \"8d\": expected at most 7 days"),
        ("first_request_grace = 604801", "1:23: bad time 604801: expected at most 7 days"),
        ("carry = 'yes'", "1:9: invalid type: string \"yes\", expected true or false"),
        ("carry = 1", "1:9: invalid type: integer `1`, expected true or false"),
        ("carry = -1", "1:9: invalid value: integer `-1`, expected true or false"),
        ("max_generations = 1", "1:19: bad count 1: expected 2 to 64"),
        ("max_generations = '8'", "1:19: invalid type: string \"8\", expected a whole number"),
        ("workers = 0", "1:11: bad count 0: expected a number of threads, 1 to 1024"),
        ("workers = 1025", "1:11: bad count 1025: expected a number of threads, 1 to 1024"),
        ("pid_file = ''", "1:12: bad path \"\": expected"),
        ("control = 'run/control'", "1:11: bad path \"run/control\": expected an absolute path"),
        (
            "log = 'handoffd=loud'",
            "1:7: bad filter \"handoffd=loud\": \"loud\" is not a level, expected error, warn",
        ),
        ("log = 'inof'", "1:7: bad filter \"inof\": \"inof\" is not a level, expected error, warn"),
        ("log_format = 'xml'", "1:14: bad format \"xml\": expected text or json"),
        ("log = ''", "1:7: bad filter \"\": \"\" is not a level, expected error, warn"),
        ("metrics = 9100", "1:11: invalid type: integer `9100`, expected an address"),
        (
            &format!("metrics = '@b'\n{}", echo("").replace("web", "metrics")),
            "1:11: another listener is named",
        ),
        (
            &format!("metrics = '@a'\n{}", echo("")),
            "1:11: the listener \"web\" already has the address @a, expected another",
        ),
        (
            "metrics = '127.0.0.1:80'\n[listener.web]\naddress = '[::]:80'\nservice = 'echo'",
            "1:11: the address 127.0.0.1:80 overlaps with [::]:80 of the listener \"web\", expected another",
        ),
        // Listeners.
        (
            "bake = 1\n",
            "1:1: no listener is configured, expected at least one, as in [listener.web]",
        ),
        ("listener = 5", "1:12: not a table, expected a table with the listener's name"),
        (
            "[listener]\naddress = '@a'",
            "2:11: not a table, expected a table with the listener's name",
        ),
        ("[[listener.web]]\naddress = '@a'", "1:1: not a table"),
        (
            "[listener.web]\nservice = 'echo'",
            "1:11: the listener \"web\" has no address, expected an address",
        ),
        (
            "[listener.web]\naddress = '@a'",
            "1:11: the listener \"web\" has no service, expected \"echo\" or \"proxy\"",
        ),
        ("[listener.web]\naddress = 'web:80'", "2:11: bad address \"web:80\": expected IP:PORT"),
        (
            "[listener.web]\nservice = 'http'",
            "2:11: bad service \"http\": expected \"echo\" or \"proxy\"",
        ),
        (
            "[listener.'ä b']\naddress = '@a'",
            "1:11: bad listener name \"ä b\": a name may have only printable ASCII",
        ),
        (
            "[listener.control]\n",
            "1:11: bad listener name \"control\": this name is reserved for the control socket",
        ),
        (&echo("carry = 'drain'"), "4:9: invalid type: string \"drain\", expected true or false"),
        (&echo("mode = 660"), "4:8: invalid type: integer `660`, expected octal digits as text"),
        (&echo("mode = '0o660'"), "4:8: bad mode \"0o660\": expected octal digits"),
        (&echo("group = ''"), "4:9: bad name \"\": expected a name or a number"),
        (&echo("max_connections = 0"), "4:19: bad count 0: expected a whole number, 1 or higher"),
        (
            &echo("  balance = 'in-order'"),
            "4:13: balance is a setting of a proxy, allowed only with service = \"proxy\"",
        ),
        (&echo("\neject_for = 1\nlifetime = 1"), "5:13: eject_for is a setting of a proxy"),
        (&echo("upstream = ['@b']"), "4:1: unknown field `upstream`, expected one of `address`"),
        (
            &echo("[listener.api]\naddress = '@a'\nservice = 'echo'"),
            "5:11: the listener \"web\" already has the address @a, expected another",
        ),
        (
            "[listener.web]\naddress = '0.0.0.0:80'\nservice = 'echo'\n[listener.api]\naddress = '127.0.0.1:80'",
            "5:11: the address 127.0.0.1:80 overlaps with 0.0.0.0:80 of the listener \"web\", expected another",
        ),
        // Proxies.
        (
            "[listener.web]\naddress = '[::]:80'\nservice = 'proxy'\nupstreams = ['@b', '127.0.0.1:80']",
            "4:20: the upstream 127.0.0.1:80 leads back to the listener \"web\": connections would loop forever",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = ['@b']\n\
             [listener.api]\naddress = '@b'\nservice = 'proxy'\nupstreams = ['@a']",
            "8:14: the upstream @a leads back to the listener \"web\": connections would loop forever",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\n",
            "1:11: the listener \"web\" has no upstreams, expected",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = []",
            "4:13: no upstream is given, expected at least one",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = '@b'",
            "4:13: invalid type: string \"@b\", expected a list",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = [\n  '@ä', 'app']",
            "5:9: bad address \"app\": expected IP:PORT",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = ['127.0.0.1:0']",
            "4:14: bad address \"127.0.0.1:0\": an upstream cannot have port 0",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = ['tcp6:[::1]:1']",
            "4:14: bad address \"tcp6:[::1]:1\": tcp6: is only for listeners",
        ),
        (
            "[listener.web]\naddress = '@a'\nservice = 'proxy'\nupstreams = ['@b', '@c', '@b']",
            "4:26: the upstream @b is given twice, expected only once",
        ),
        (
            &proxied("balance = 'fair'"),
            "5:11: bad balance \"fair\": expected round-robin, least-connections or in-order",
        ),
        (&proxied("connect_timeout = 0"), "5:19: bad time 0: expected more than zero"),
        (
            &proxied("connect_patience = true"),
            "5:20: invalid type: boolean `true`, expected a time",
        ),
        (&proxied("idle_timeout = '0s'"), "5:16: bad time \"0s\": expected more than zero"),
        (&proxied("lifetime = '30d'"), "5:12: bad time \"30d\": expected at most 7 days"),
        (
            &proxied("send_proxy_header = 2"),
            "5:21: invalid type: integer `2`, expected \"v1\" or \"v2\"",
        ),
        (
            &proxied("accept_proxy_header_from = ['10.0.0.0/33']"),
            "5:29: bad network \"10.0.0.0/33\": expected a network",
        ),
        (
            &proxied("proxy_header_timeout = 1"),
            "5:24: proxy_header_timeout has no effect on its own, expected accept_proxy",
        ),
        (
            &proxied("keep_alive = '10h'"),
            "5:14: bad time \"10h\": expected whole seconds, 1s to 9h",
        ),
        (&proxied("user_timeout = '1us'"), "5:16: bad time \"1us\": expected at least 1ms"),
        (
            &proxied("eject_after = -3"),
            "5:15: invalid value: integer `-3`, expected a whole number, 0 or higher",
        ),
        (
            &proxied("check_timeout = 1"),
            "5:17: check_timeout has no effect on its own, expected check_interval",
        ),
    ];
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("handoffd.toml");
    let file = path.to_str().unwrap();
    for (text, expected) in &cases {
        fs::write(&path, text).unwrap();
        let refusal = Refusal::to(&["check", "--config", file]);
        refusal.names(78, &[&format!("handoffd: {file}:{expected}")]);
    }
    // The daemon reports errors in the same form.
    for (text, expected) in &cases[..10] {
        fs::write(&path, text).unwrap();
        Refusal::to(&["--config", file]).names(78, &[&format!("handoffd: {file}:{expected}")]);
    }
}
