//! Integration tests of the real daemon. Each module tests one feature, and each test is one claim.
//!
//! The tests see only what a client or an operator sees: bytes, exit codes and the log. They wait
//! for events under a deadline, use port 0 and temporary folders, and run in parallel. They leave
//! no process, socket or file behind.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test that cannot continue has failed"
)]
#![allow(clippy::missing_panics_doc, reason = "tests panic")]
#![allow(
    clippy::print_stdout,
    reason = "storms print how many connections they made; cargo shows it on request"
)]

mod support;
mod terminations;

mod activation;
mod carry_calls;
mod carry_changes;
mod carry_middle;
mod carry_room;
mod carry_versions;
mod check;
mod config_file;
mod config_limits;
mod config_text;
mod container;
mod control;
mod control_clients;
mod conversation;
mod counters;
mod crashes;
mod doctor;
mod drain;
mod embedded_in_tests;
mod errors;
mod events;
mod examples;
mod exhaustion;
mod foreign_text;
mod generated;
mod generations;
mod handoff;
mod hangups;
mod inheritance;
mod instants;
mod large;
mod launch;
mod launch_faults;
mod layers;
mod leaks;
mod life;
mod life_listeners;
mod life_workers;
mod listeners;
mod log;
mod moved_listeners;
mod moves;
mod notify;
mod notify_containers;
mod output;
mod pid_file;
mod preloaded;
mod program;
mod program_readiness;
mod program_reasons;
mod program_reports;
mod program_stops;
mod programs;
mod proxy;
mod proxy_closes;
mod proxy_faults;
mod proxy_headers;
mod proxy_restarts;
mod queue;
mod recipes_page;
mod signals;
mod soak;
mod store;
mod storm;
mod stray_signals;
mod unix_access;
mod unix_paths;
mod upstream_names;
mod upstreams;
mod usage;
mod workers;
