//! The conformance suite (`tests/frontend`) on platter, and on what it is compared with.

use anyhow::{Result, bail};

use super::World;
use crate::conformance::{self, Backend, Column, Verdict};

/// Every operation, negotiation and boundary of blkif that the suite knows.
pub(super) fn every_check_passes(world: &World) -> Result<()> {
    world.platter()?;
    judge(vec![try_on(world, Backend::Platter)?]).map(drop)
}

/// The same on Linux's xen-blkback in a driver domain and in dom0, and on QEMU's qdisk: each check counts.
pub(super) fn every_check_counts(world: &World) -> Result<()> {
    world.platter()?;
    let mut columns = Vec::new();
    for backend in Backend::ALL {
        if backend != Backend::Platter {
            backend.start(world.machine())?;
        }
        columns.push(try_on(world, backend)?);
        backend.stop(world.machine())?;
    }
    world.say(&judge(columns)?.to_string());
    Ok(())
}

fn try_on(world: &World, backend: Backend) -> Result<Column> {
    let say = |doing: &str| world.step(&format!("{}: {doing}", backend.name()));
    conformance::on(world.machine(), backend, "", &say)
}

fn judge(columns: Vec<Column>) -> Result<Verdict> {
    let verdict = Verdict::new(columns);
    if !verdict.complaints().is_empty() {
        bail!("{verdict}");
    }
    Ok(verdict)
}
