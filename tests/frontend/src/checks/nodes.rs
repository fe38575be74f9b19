//! `nodes/`: what the backend publishes, and the states it goes through.

use platter::wire::xenbus::{Value, XenbusState, number};

use crate::stage::Stage;
use crate::terms::Terms;
use crate::verdict::{Check, End, Verdict, ensure};

/// Flags that are 0 or 1 where they are there at all.
const FLAGS: [&str; 6] = [
    "feature-barrier",
    "feature-flush-cache",
    "feature-discard",
    "feature-persistent",
    "discard-secure",
    "discard-enable",
];
/// Numbers, where they are there.
const COUNTS: [&str; 5] = [
    "feature-max-indirect-segments",
    "max-ring-page-order",
    "multi-queue-max-queues",
    "discard-alignment",
    "discard-granularity",
];

/// The room.
pub(crate) const CHECKS: &[Check] = &[
    Check::new("nodes/disk", disk),
    Check::because(
        "nodes/physical-sector-size",
        "blkif.h: physical-sector-size is an integer multiple of sector-size",
        physical,
    ),
    Check::new("nodes/features", features),
    Check::because(
        "nodes/discard",
        "blkif.h, note 4: providing just one of discard-granularity and discard-alignment may be taken for an error",
        discard,
    ),
    Check::because(
        "nodes/before-init-wait",
        "blkif.h, state diagrams: features and transport parameters are published before InitWait",
        before_init_wait,
    ),
    Check::because(
        "nodes/states",
        "blkif.h, state diagrams: InitWait, Connected, and after the frontend Closing, Closed",
        states,
    ),
];

#[inline(never)]
fn node(stage: &mut Stage, name: &str) -> Verdict<Option<Value>> {
    let backend = stage.backend.clone();
    stage.host.read(&backend, name)
}

/// A node's number: nothing where there is no node.
#[inline(never)]
fn count(stage: &mut Stage, name: &str) -> Verdict<Option<u64>> {
    let Some(text) = node(stage, name)? else { return Ok(None) };
    let value = number::<u64>(&text);
    ensure!(value.is_some(), "the node {name} is no number");
    Ok(value)
}

fn disk(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let sectors = count(stage, "sectors")?;
    ensure!(sectors.is_some_and(|sectors| sectors > 0), "the node sectors is {sectors:?}");
    let size = count(stage, "sector-size")?;
    let legal = size.is_some_and(|size| size >= 512 && size.is_power_of_two());
    ensure!(legal, "the node sector-size is {size:?}");
    let info = count(stage, "info")?;
    // VDISK_CDROM, VDISK_REMOVABLE, VDISK_READONLY.
    ensure!(info.is_some_and(|info| info < 8), "the node info is {info:?}");
    let whole = sectors.unwrap_or(0).is_multiple_of(size.unwrap_or(512) / 512);
    ensure!(whole, "the disk's {sectors:?} sectors of 512 bytes are no whole number of blocks of {size:?}");
    Ok(())
}

fn physical(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let physical = count(stage, "physical-sector-size")?;
    let Some(physical) = physical else {
        return Err(End::skip(format_args!("physical-sector-size is not published")));
    };
    let size = stage.offer.sector_size;
    ensure!(physical > 0 && physical.is_multiple_of(size), "{physical} is no multiple of sector-size {size}");
    Ok(())
}

fn features(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    for name in FLAGS {
        let value = count(stage, name)?;
        ensure!(value.is_none_or(|value| value <= 1), "the node {name} is {value:?}");
    }
    COUNTS.into_iter().try_for_each(|name| count(stage, name).map(drop))
}

fn discard(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let (granularity, alignment) = (count(stage, "discard-granularity")?, count(stage, "discard-alignment")?);
    if !stage.offer.discard {
        let none = granularity.is_none() && alignment.is_none();
        ensure!(none, "discard-* are published without feature-discard");
        return Err(End::skip(format_args!("the backend does not offer feature-discard")));
    }
    let both = granularity.is_some() == alignment.is_some();
    ensure!(both, "granularity is {granularity:?} and alignment {alignment:?}");
    let size = stage.offer.sector_size;
    let legal = granularity.is_none_or(|granularity| granularity > 0 && granularity.is_multiple_of(size));
    ensure!(legal, "granularity is {granularity:?}, which is no multiple of sector-size {size}");
    Ok(())
}

/// What a frontend decides its terms by.
fn before_init_wait(stage: &mut Stage) -> Verdict {
    const NAMES: [&str; 2] = ["max-ring-page-order", "multi-queue-max-queues"];
    stage.show(XenbusState::Initialising)?;
    stage.wait_state(&[XenbusState::InitWait])?;
    let before = [count(stage, NAMES[0])?, count(stage, NAMES[1])?];
    stage.connect(Terms::PLAIN)?;
    for (name, before) in NAMES.into_iter().zip(before) {
        let now = count(stage, name)?;
        ensure!(now == before, "{name} is {before:?} at InitWait and {now:?} at Connected");
    }
    Ok(())
}

fn states(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    stage.close_states()?;
    let order = [
        XenbusState::InitWait,
        XenbusState::Initialised,
        XenbusState::Connected,
        XenbusState::Closing,
        XenbusState::Closed,
    ];
    let place = |state: &XenbusState| order.iter().position(|other| other == state);
    // What was there before the frontend became Initialising may be seen still.
    let from = stage.seen.iter().position(|state| *state == XenbusState::InitWait).unwrap_or(0);
    let rising = stage.seen[from..].is_sorted_by(|a, b| place(a).is_some() && place(a) < place(b));
    ensure!(rising, "the backend went through {:?}", stage.seen);
    // The suite closes what is open.
    Ok(())
}
