//! Tests of the shipped units under a real systemd: this machine's version, 257 and 262.
//!
//! Run as root with `cargo test --test systemd`. Each claim is a function that runs once for each
//! version, in its own lab, which boots in half a second. All of them run in parallel. The package
//! `debootstrap` fetches the other two versions once. `by_ansible` needs the packages
//! `openssh-server` and `python3-venv`, and fetches Ansible once.
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
#![allow(dead_code, unused_imports, reason = "each test uses only a part of the shared code")]

#[path = "../support/mod.rs"]
mod support;

mod activation;
mod crashes;
mod doctor;
mod failed_start;
mod hardening;
mod lab;
mod own_server;
mod programs;
mod python;
mod reload;
mod rolling;
mod shipped;
mod stop;
mod system;
mod traffic;
mod unix_path;
mod user;
mod variant;

use system::System;

/// Defines a test of each claim for each version of systemd.
macro_rules! claims {
    ($($file:ident::$claim:ident,)*) => {
        mod host {
            $(#[test] fn $claim() { crate::$file::$claim(crate::System::Host); })*
        }
        mod trixie {
            $(#[test] fn $claim() { crate::$file::$claim(crate::System::Trixie); })*
        }
        mod forky {
            $(#[test] fn $claim() { crate::$file::$claim(crate::System::Forky); })*
        }
    };
}

claims! {
    activation::a_client_starts_the_service_and_is_answered,
    activation::restarts_under_traffic_lose_no_client,
    activation::a_client_that_waits_for_a_restart_is_answered,
    crashes::killing_all_processes_with_a_socket_unit_refuses_no_client,
    crashes::killing_all_processes_with_the_store_refuses_no_client,
    crashes::a_main_process_that_dies_during_a_drain_is_restarted,
    crashes::a_main_process_that_dies_in_the_bake_costs_no_client,
    crashes::a_main_process_that_dies_beside_a_hung_successor_is_restarted,
    crashes::the_watchdog_restarts_a_process_with_hung_accept_loops,
    doctor::the_doctor_names_what_breaks_a_handoff,
    failed_start::an_address_that_appears_later_is_served,
    failed_start::a_client_waits_for_a_better_configuration,
    failed_start::a_wrong_configuration_is_tried_once,
    failed_start::the_socket_unit_outlives_many_failed_starts,
    hardening::the_units_are_sound_and_hardened,
    own_server::a_server_of_your_own_is_reloaded_with_a_true_outcome,
    programs::a_release_that_fails_is_rolled_back,
    programs::a_release_that_fails_in_the_bake_is_rolled_back,
    programs::killing_a_program_or_its_generation_refuses_no_client,
    programs::a_program_that_hangs_is_started_again,
    programs::a_stop_in_the_bake_lets_the_clients_finish,
    programs::a_stop_lets_the_clients_of_a_program_finish,
    programs::a_program_that_ends_ends_its_service,
    programs::a_reload_reads_the_surroundings_again,
    programs::the_doctor_finds_no_fault_with_the_unit_of_a_program,
    reload::a_hundred_reloads_under_traffic_lose_no_client,
    reload::a_failed_reload_reports_why_and_changes_nothing,
    reload::ready_means_accepting_and_systemd_watches_the_main_pid,
    reload::the_second_of_two_concurrent_reloads_must_be_retried,
    reload::systemd_may_be_reexecuted_during_a_handoff,
    stop::a_stop_drains_every_generation_and_cuts_no_client,
    stop::a_stop_right_after_a_reload_ends_every_generation,
    unix_path::restarts_lose_no_client_of_a_unix_path,
    unix_path::systemd_makes_a_path_for_other_users,
    unix_path::the_doctor_finds_a_path_that_clients_lose,
    unix_path::the_runbook_lets_other_users_reach_a_unix_path,
    user::the_service_works_under_a_user_manager,
}

mod only_from_254 {
    use crate::System::{Forky, Trixie};
    use crate::failed_start::the_pause_between_failed_starts_grows;

    #[test]
    fn the_pause_grows_on_trixie() {
        the_pause_between_failed_starts_grows(Trixie);
    }

    #[test]
    fn the_pause_grows_on_forky() {
        the_pause_between_failed_starts_grows(Forky);
    }
}

mod only_here {
    #[test]
    fn releases_of_a_python_server_succeed_or_change_nothing() {
        crate::python::releases_of_a_python_server_succeed_or_change_nothing();
    }
}

mod only_from_259 {
    #[test]
    fn the_notify_reload_variant_reports_every_end_of_a_reload() {
        crate::variant::the_notify_reload_variant_reports_every_end_of_a_reload(
            crate::System::Forky,
        );
    }
}

/// These tests run only on this machine's systemd. They take the longest, and their name makes them
/// start first.
mod by_ansible {
    #[test]
    fn a_good_release_rolls_over_all_hosts_unnoticed() {
        crate::rolling::a_good_release_rolls_over_all_hosts_unnoticed();
    }

    #[test]
    fn a_bad_release_stops_at_the_first_host() {
        crate::rolling::a_bad_release_stops_at_the_first_host();
    }
}
