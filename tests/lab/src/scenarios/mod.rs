//! The scenarios: short stories on an emulated machine, several sharing one boot.
//!
//! A story may rely on nothing an earlier one left behind but running guests; a story that fails gets a fresh machine
//! for those after it. [`world`] is what stories are told with.

mod attacks;
mod blocks;
mod booting;
mod conformance;
mod farewell;
mod frontends;
mod guests;
mod hotplug;
mod life;
mod many;
mod memory;
mod serving;
mod statistics;
mod systems;
mod toolstack;
mod trouble;
mod volumes;
mod world;

use std::time::Duration;

use anyhow::Result;

pub(crate) use self::world::{World, machine};
use crate::machine::{BLOCK_SIZE, Daemon, Disk};
use crate::oracle::Expected;

/// devid of xvdb: 202 << 8 | 1 << 4.
const XVDB: u32 = 51728;
/// Blocks in a MiB.
const MIB: u64 = (1 << 20) / BLOCK_SIZE;
/// Far more than what is waited for takes.
const A_MOMENT: Duration = Duration::from_secs(20);

/// What fio writes in stories about something else, in MiB: from where, and how much.
const REGION: (u32, u32) = (5, 8);

/// A disk on which nothing but [`REGION`] may have changed.
fn region(disk: &Disk) -> Expected<'_> {
    let (offset, size) = (u64::from(REGION.0), u64::from(REGION.1));
    Expected::untouched(disk).anything(offset * MIB..(offset + size) * MIB)
}

/// When a boot is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Always.
    Short,
    /// With `--all`: long jobs, measuring, and what only the other daemon adds.
    Long,
}

/// One machine and the stories told on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boot {
    pub(crate) name: &'static str,
    pub(crate) lane: Lane,
    pub(crate) daemon: Daemon,
    /// More of Xen's command line.
    pub(crate) xen_options: &'static str,
    pub(crate) stories: &'static [Story],
}

/// A story and its name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Story {
    pub(crate) name: &'static str,
    pub(crate) tell: fn(&World) -> Result<()>,
}

macro_rules! stories {
    ($($room:ident::$story:ident),* $(,)?) => {
        &[$(Story { name: stringify!($story), tell: $room::$story }),*]
    };
}

/// Guests that come and go.
const GUESTS: &[Story] = stories![
    guests::boots_with_its_disks,
    guests::shut_down_in_mid_io,
    guests::crashes_in_mid_io,
    guests::destroyed_in_mid_io,
    guests::reboots_in_mid_io,
    guests::detached_by_force_in_mid_io,
];

/// What frontends do.
const FRONTENDS: &[Story] = stories![
    frontends::driver_unloaded_and_loaded,
    frontends::starts_again_while_connected,
    frontends::ready_before_us,
    frontends::paused_with_a_full_ring,
    frontends::saved_and_carried_on,
    frontends::saved_and_restored,
];

/// What the toolstack asks for.
const TOOLSTACK: &[Story] = stories![
    guests::twenty_times_back_to_back,
    guests::detached_more_than_once,
    toolstack::dom0_is_a_guest_too,
    toolstack::attached_over_itself,
    toolstack::attached_before_platter_runs,
    toolstack::read_only_disks_take_no_writes,
    toolstack::a_format_that_is_not_served,
];

/// Guests that attack.
const ATTACKS: &[Story] = stories![attacks::each_beside_a_victim, attacks::attackers_die_in_the_middle];

/// platter's end.
const FAREWELL: &[Story] = stories![farewell::shut_down_in_mid_io, farewell::rebooted_in_mid_io];

/// Every boot there is.
pub(crate) const BOOTS: &[Boot] = &[
    Boot {
        name: "serving",
        lane: Lane::Short,
        daemon: Daemon::Oxenstored,
        xen_options: "",
        stories: stories![
            serving::boots_and_says_ready,
            serving::refuses_an_unknown_volume,
            blocks::writes_land_where_they_belong,
            blocks::flushes_reach_the_device,
            blocks::file_system_stays_clean,
            serving::attaches_again_and_again,
            blocks::two_guests_at_once,
            statistics::what_fio_did_is_what_dom0_sees,
        ],
    },
    Boot {
        name: "c-xenstored",
        lane: Lane::Short,
        daemon: Daemon::Xenstored,
        xen_options: "",
        stories: stories![
            serving::boots_and_says_ready,
            serving::refuses_an_unknown_volume,
            serving::attaches_again_and_again,
            blocks::file_system_stays_clean,
            blocks::all_sizes_verify,
            life::shuts_down_when_asked,
        ],
    },
    Boot {
        name: "life",
        lane: Lane::Short,
        daemon: Daemon::Oxenstored,
        xen_options: "",
        stories: stories![
            life::options_are_heeded_or_named,
            life::uses_the_memory_it_is_given,
            life::sleeps_when_idle,
            life::stays_up_without_a_device,
            life::shuts_down_when_asked,
            life::crash_leaves_an_epitaph,
            life::crash_restarts,
            trouble::a_console_that_stands_still_holds_nothing_up,
            trouble::a_wake_up_without_an_event_leaves_upcalls_masked,
        ],
    },
    on_oxenstored("guests", GUESTS),
    on_oxenstored("toolstack", TOOLSTACK),
    on_oxenstored("farewell", FAREWELL),
    on_oxenstored("frontends", FRONTENDS),
    Boot {
        name: "volumes",
        lane: Lane::Short,
        daemon: Daemon::Oxenstored,
        xen_options: "",
        stories: stories![
            volumes::partitions_by_every_name,
            volumes::logical_partitions,
            volumes::tables_that_guests_write_change_nothing,
            volumes::each_block_has_one_writer,
        ],
    },
    Boot {
        name: "systems",
        lane: Lane::Short,
        daemon: Daemon::Oxenstored,
        xen_options: "",
        stories: stories![
            systems::linux_on_one_processor,
            systems::linux_6_1_with_each_setting,
            systems::linux_6_12_with_each_setting,
            booting::boots_from_its_disk,
        ],
    },
    Boot {
        name: "many",
        lane: Lane::Short,
        daemon: Daemon::Oxenstored,
        xen_options: "",
        stories: stories![many::devices_until_a_budget_refuses],
    },
    Boot {
        name: "no-interrupts",
        lane: Lane::Short,
        daemon: Daemon::Oxenstored,
        // Leaves a domain no interrupt numbers for MSI-X.
        xen_options: "extra_guest_irqs=0",
        stories: stories![trouble::without_an_interrupt_it_polls],
    },
    Boot {
        name: "wedged",
        lane: Lane::Short,
        daemon: Daemon::Oxenstored,
        xen_options: "",
        stories: stories![trouble::a_loop_that_does_not_turn_is_ended],
    },
    Boot {
        name: "hotplug",
        lane: Lane::Short,
        daemon: Daemon::Oxenstored,
        xen_options: "",
        stories: stories![
            hotplug::a_controller_comes_and_goes_under_load,
            hotplug::the_first_controller_comes_later,
        ],
    },
    Boot {
        name: "conformance",
        lane: Lane::Short,
        daemon: Daemon::Oxenstored,
        xen_options: "",
        stories: stories![conformance::every_check_passes],
    },
    on_oxenstored("attacks", stories![attacks::each_beside_a_victim]),
    Boot {
        name: "conformance-beside",
        lane: Lane::Long,
        daemon: Daemon::Oxenstored,
        xen_options: "",
        stories: stories![conformance::every_check_counts],
    },
    Boot {
        name: "beside-linux",
        lane: Lane::Long,
        daemon: Daemon::Oxenstored,
        xen_options: "",
        stories: stories![systems::a_linux_driver_domain_agrees_to_the_same],
    },
    Boot {
        name: "endurance",
        lane: Lane::Long,
        daemon: Daemon::Oxenstored,
        xen_options: "",
        stories: stories![blocks::all_sizes_verify, blocks::two_guests_for_long],
    },
    Boot {
        name: "attackers",
        lane: Lane::Long,
        daemon: Daemon::Oxenstored,
        xen_options: "",
        stories: stories![attacks::attackers_die_in_the_middle],
    },
    Boot {
        name: "c-xenstored-many",
        lane: Lane::Long,
        daemon: Daemon::Xenstored,
        xen_options: "",
        stories: stories![many::devices_until_a_budget_refuses, memory::of_64_devices_at_work],
    },
    Boot {
        name: "c-xenstored-more",
        lane: Lane::Long,
        daemon: Daemon::Xenstored,
        xen_options: "",
        stories: stories![
            blocks::writes_land_where_they_belong,
            blocks::flushes_reach_the_device,
            blocks::two_guests_at_once,
            statistics::what_fio_did_is_what_dom0_sees,
            life::options_are_heeded_or_named,
            life::stays_up_without_a_device,
            life::crash_leaves_an_epitaph,
            life::crash_restarts,
        ],
    },
    on_xenstored("c-xenstored-guests", GUESTS),
    on_xenstored("c-xenstored-toolstack", TOOLSTACK),
    on_xenstored("c-xenstored-farewell", FAREWELL),
    on_xenstored("c-xenstored-frontends", FRONTENDS),
    on_xenstored("c-xenstored-attacks", ATTACKS),
];

/// Always: on Debian's default daemon.
const fn on_oxenstored(name: &'static str, stories: &'static [Story]) -> Boot {
    Boot { name, lane: Lane::Short, daemon: Daemon::Oxenstored, xen_options: "", stories }
}

/// In the long lane: the same on the other daemon.
const fn on_xenstored(name: &'static str, stories: &'static [Story]) -> Boot {
    Boot { name, lane: Lane::Long, daemon: Daemon::Xenstored, xen_options: "", stories }
}
