//! Holds the shipped units to the promise under a real systemd: this machine's, 257 and 262.
//!
//! `cargo test --test systemd`, as root. Each claim is a function of a systemd and runs once on
//! each, in a lab of its own that boots in half a second; all of them run side by side. What Debian
//! package `debootstrap` needs for the other two it fetches once. `by_ansible` needs the packages
//! `openssh-server` and `python3-venv`, and fetches Ansible once.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]
#![allow(clippy::missing_panics_doc, reason = "tests panic")]
#![allow(
    clippy::print_stdout,
    reason = "a storm tells how many it was made of; cargo shows it on request"
)]
#![allow(dead_code, unused_imports, reason = "of what the tests share, each uses a part")]

#[path = "../support/mod.rs"]
mod support;

mod activation;
mod crashes;
mod doctor;
mod failed_start;
mod hardening;
mod lab;
mod reload;
mod rolling;
mod stop;
mod unix_path;
mod user;
mod variant;

use lab::System;

/// Makes a test of each claim for each systemd.
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
    activation::restarts_under_traffic_refuse_and_reset_nobody,
    activation::a_client_that_waits_while_the_service_stops_is_answered_by_the_next,
    crashes::a_kill_of_every_process_refuses_nobody_under_socket_activation,
    crashes::a_kill_of_every_process_refuses_nobody_with_the_store,
    crashes::a_main_process_that_dies_while_an_old_one_drains_is_restarted,
    crashes::a_main_process_that_dies_during_the_bake_costs_nobody_who_waits,
    crashes::a_main_process_whose_accept_loop_hangs_is_restarted_by_the_watchdog,
    doctor::the_doctor_names_what_breaks_a_handoff,
    failed_start::an_address_that_is_not_there_yet_is_served_when_it_comes,
    failed_start::a_wrong_configuration_is_tried_once,
    hardening::the_units_are_sound_and_hardened,
    reload::a_hundred_reloads_under_traffic_lose_nobody,
    reload::a_reload_that_cannot_succeed_says_why_and_changes_nothing,
    reload::ready_means_accepting_and_the_main_process_is_one_that_systemd_watches,
    reload::of_two_reloads_at_once_one_is_told_to_try_again,
    reload::systemd_may_be_reloaded_and_replaced_in_the_middle_of_a_handoff,
    stop::a_stop_drains_every_generation_and_cuts_nobody,
    stop::a_stop_right_after_a_reload_ends_all_of_them_in_order,
    unix_path::restarts_lose_no_client_of_a_unix_path,
    unix_path::systemd_makes_a_path_for_other_users,
    unix_path::the_doctor_finds_a_path_that_clients_lose,
    unix_path::the_runbook_lets_other_users_reach_a_unix_path,
    user::a_service_manager_of_a_user_sees_the_same,
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

mod only_from_259 {
    #[test]
    fn the_notify_reload_variant_reports_every_end_of_a_reload() {
        crate::variant::the_notify_reload_variant_reports_every_end_of_a_reload(
            crate::System::Forky,
        );
    }
}

/// On this machine's systemd alone. They take the longest, and by this name they begin first.
mod by_ansible {
    #[test]
    fn a_good_release_goes_over_all_hosts_one_by_one_and_nobody_notices() {
        crate::rolling::a_good_release_goes_over_all_hosts_one_by_one_and_nobody_notices();
    }

    #[test]
    fn a_bad_release_stops_at_the_first_host_which_serves_on() {
        crate::rolling::a_bad_release_stops_at_the_first_host_which_serves_on();
    }
}
