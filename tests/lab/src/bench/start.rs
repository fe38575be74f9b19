//! How long a domain takes from `xl create` until it serves, above what any domain takes: an image that only prints, with the
//! same configuration.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

use super::series::Median;
use super::stage::DRIVER_DOMAIN;
use crate::machine::{Controller, Machine, NAME};
use crate::paths;
use crate::progress::Step;

/// The image of tests/frontend, which lists its attacks and ends.
const FLOOR: &str = "frontend";

/// Seconds from `xl create` on.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Starts {
    /// Until an image that only prints has printed.
    pub(super) floor: Median,
    /// Until platter says that it is ready.
    pub(super) platter: Median,
    /// CPU time that platter has used by then, in seconds: Xen's share of it is in there.
    pub(super) platter_cpu: Median,
    /// Until the Linux driver domain has started `xl devd`.
    pub(super) linux: Median,
}

impl Starts {
    /// How many times as long Linux takes above the floor; none, when platter is not above it.
    pub(super) fn ratio(&self) -> Option<f64> {
        let above = |time: Median| time.median - self.floor.median;
        (above(self.platter) > 0.0).then(|| above(self.linux) / above(self.platter))
    }
}

/// Starts each of them so often; the names must be free, and the configurations of before in the shared folder.
///
/// # Errors
/// One does not come up.
pub(super) fn measure(machine: &Machine, step: &Step, times: u32) -> Result<Starts> {
    fs::copy(paths::image().join(FLOOR), machine.run().share().join(FLOOR))
        .context("no image of the frontend")?;
    let pci = Controller::PLATTER.pci();
    let platter = |name: &str, options: &str| {
        format!(
            "/share/{NAME}.cfg 'name=\"{name}\"' 'kernel=\"/share/{name}\"' 'pci=[\"{pci}\"]' 'extra=\"{options}\"'"
        )
    };
    let [mut floors, mut platters, mut cpu, mut linuxes] = [const { Vec::new() }; 4];
    for round in 1..=times {
        step.now(&format!("start {round} of {times}: an image that only prints"));
        floors.push(start(machine, FLOOR, &platter(FLOOR, "torture list"), "/")?);
        end(machine, FLOOR, &Controller::PLATTER)?;
        step.now(&format!("start {round} of {times}: platter"));
        platters.push(start(machine, NAME, &platter(NAME, "log=info"), "ready in")?);
        let id = machine.dom0(&format!("xl domid {NAME}"))?.parse().context("xl domid printed no number")?;
        cpu.push(machine.cpu_time(id)? as f64 / 1e9);
        end(machine, NAME, &Controller::PLATTER)?;
        step.now(&format!("start {round} of {times}: the Linux driver domain"));
        linuxes.push(start(machine, DRIVER_DOMAIN, &format!("/share/{DRIVER_DOMAIN}.cfg"), "@lab up")?);
        end(machine, DRIVER_DOMAIN, &Controller::LINUX)?;
    }
    let [floor, platter, platter_cpu, linux] =
        [floors, platters, cpu, linuxes].map(|values| Median::of(values.into_iter()));
    Ok(Starts { floor, platter, platter_cpu, linux })
}

/// Seconds from `xl create` until a domain has printed a line with this text.
fn start(machine: &Machine, name: &str, configuration: &str, text: &str) -> Result<f64> {
    let log = format!("/share/console/guest-{name}.log");
    let lines = format!("$(grep -c '{text}' {log})");
    let said = machine.dom0(&format!(
        "touch {log}; before={lines}; cut -d' ' -f1 /proc/uptime; \
         rm -f /tmp/refused; {{ xl create {configuration} >/tmp/xl 2>&1 || touch /tmp/refused; }} & \
         until [ {lines} -gt $before ]; do if [ -e /tmp/refused ]; then cat /tmp/xl; exit 1; fi; usleep 10000; done; \
         cut -d' ' -f1 /proc/uptime; wait"
    ))?;
    let mut times = said.lines().map(str::parse::<f64>);
    let (Some(Ok(from)), Some(Ok(to))) = (times.next(), times.next()) else {
        anyhow::bail!("{name}: no times in {said:?}");
    };
    Ok(to - from)
}

/// Ends a domain, if it has not by itself, and waits until its controller is free again.
fn end(machine: &Machine, name: &str, controller: &Controller) -> Result<()> {
    let script = format!(
        "xl destroy {name} 2>/dev/null; \
         until ! xl domid {name} >/dev/null 2>&1 && xl pci-assignable-list | grep -q {}; do sleep 0.2; done",
        controller.pci()
    );
    machine.dom0(&script).map(drop)
}
