//! All that was measured, and its tables.

use std::fs;

use anyhow::Result;
use serde::Serialize;

use super::series::{Median, Sample, Series};
use super::stage::{Attach, Contender, Server};
use super::start::Starts;
use super::trace::Hypercalls;
use crate::{paths, report, setup};

/// A job on a contender, by so many guests at once.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cell {
    pub(super) job: &'static str,
    pub(super) contender: Contender,
    pub(super) guests: usize,
    pub(super) series: Series,
    pub(super) hypercalls: Option<Hypercalls>,
}

impl Cell {
    pub(super) fn new(job: &'static str, contender: Contender, guests: usize) -> Self {
        Self { job, contender, guests, series: Series::default(), hypercalls: None }
    }
}

/// Everything.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Results {
    /// Versions of what ran.
    pub(super) versions: Vec<String>,
    /// Length of a round of a job.
    pub(super) seconds: u32,
    /// Bytes of platter's image.
    pub(super) image: u64,
    /// Bytes of the Linux driver domain's kernel and initramfs.
    pub(super) linux_image: u64,
    pub(super) cells: Vec<Cell>,
    /// What each server takes of memory, in words.
    pub(super) memory: Vec<(&'static str, String)>,
    pub(super) starts: Option<Starts>,
    pub(super) attach: Option<Attach>,
}

impl Results {
    pub(super) fn new(seconds: u32, image: u64) -> Result<Self> {
        let machine = paths::machine();
        let size = |name: &str| fs::metadata(machine.join(name)).map(|file| file.len());
        Ok(Self {
            versions: setup::versions(&["linux-image", "qemu-system-xen", "xen-hypervisor", "fio"])?,
            seconds,
            image,
            linux_image: size("vmlinux")? + size("control.cpio")?,
            cells: Vec::new(),
            memory: Vec::new(),
            starts: None,
            attach: None,
        })
    }

    /// Those of a job by so many guests.
    pub(super) fn cells_of(&mut self, job: &str, guests: usize) -> impl Iterator<Item = &mut Cell> {
        self.cells.iter_mut().filter(move |cell| cell.job == job && cell.guests == guests)
    }

    /// The same job by as many guests on another contender.
    pub(super) fn beside(&self, cell: &Cell, contender: Contender) -> Option<&Cell> {
        self.cells
            .iter()
            .find(|one| one.job == cell.job && one.guests == cell.guests && one.contender == contender)
    }

    /// How many guests were at work at once, in each of the scenes.
    pub(super) fn scenes(&self) -> Vec<usize> {
        let mut scenes: Vec<usize> = self.cells.iter().map(|cell| cell.guests).collect();
        scenes.dedup();
        scenes
    }

    /// All tables, for people.
    pub(super) fn tables(&self) -> String {
        let mut text = String::new();
        for guests in self.scenes() {
            let (head, rows) = self.speed(guests);
            text += &format!("{}\n", report::table(&head, &rows));
        }
        let (head, rows) = self.hypercalls();
        text += &format!("{}\n", report::table(&head, &rows));
        for (what, figure) in self.sizes() {
            text += &format!("{what}: {figure}\n");
        }
        text
    }

    /// The table of one scene: its head and its rows.
    pub(super) fn speed(&self, guests: usize) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let title = if guests == 1 { "one guest" } else { "four guests at once" };
        let head = vec![
            title,
            "served by",
            "IOPS",
            "MB/s",
            "mean ms",
            "p99 ms",
            "CPU us",
            "platter is faster",
            "takes CPU / platter's",
            "rounds, spread",
        ];
        let rows = self.cells.iter().filter(|cell| cell.guests == guests).map(|cell| self.row(cell));
        (head, rows.collect())
    }

    fn row(&self, cell: &Cell) -> Vec<String> {
        let series = &cell.series;
        let figure = |of: fn(&Sample) -> f64| series.median(of).median;
        let opponent =
            self.beside(cell, cell.contender.opponent()).filter(|_| cell.contender.server != Server::Platter);
        let times = |ratio: Median| format!("{:.2} ({:.2}-{:.2})", ratio.median, ratio.low, ratio.high);
        let ratio = |ratio: Option<Median>| ratio.map_or_else(|| "-".to_owned(), times);
        vec![
            cell.job.to_owned(),
            cell.contender.name(),
            format!("{:.0}", figure(|one| one.iops)),
            format!("{:.1}", figure(|one| one.megabytes_per_second)),
            format!("{:.2}", figure(|one| one.mean_ms)),
            format!("{:.2}", figure(|one| one.p99_ms)),
            format!("{:.0}", figure(|one| one.cpu_us)),
            ratio(opponent.map(|one| one.series.ratio(series, |sample| sample.iops))),
            ratio(opponent.map(|one| series.ratio(&one.series, |sample| sample.cpu_us))),
            format!("{}, {:.0} %", series.0.len(), series.median(|one| one.iops).spread() * 100.0),
        ]
    }

    /// Hypercalls for a request: the table's head and its rows.
    pub(super) fn hypercalls(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let head = vec![
            "hypercalls for a request",
            "served by",
            "all",
            "grants",
            "event channels",
            "requests an event",
        ];
        let row = |cell: &Cell| {
            let Hypercalls { all, grants, events } = cell.hypercalls?;
            let numbers = [all, grants, events].map(|number| format!("{number:.2}"));
            let row = [cell.job.to_owned(), cell.contender.name()].into_iter().chain(numbers);
            Some(row.chain([format!("{:.1}", 1.0 / events)]).collect())
        };
        (head, self.cells.iter().filter_map(row).collect())
    }

    /// What is no speed: what it is, and how much.
    pub(super) fn sizes(&self) -> Vec<(String, String)> {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut sizes = vec![(
            "image".to_owned(),
            format!(
                "platter {:.2} MiB, Linux driver domain {:.1} MiB",
                mebibytes(self.image),
                mebibytes(self.linux_image)
            ),
        )];
        sizes.extend(self.memory.iter().map(|(who, what)| (format!("memory of {who}"), what.clone())));
        let milliseconds = |time: Median| {
            let [low, median, high] = [time.low, time.median, time.high].map(|time| time * 1e3);
            format!("{median:.1} ms ({low:.1}-{high:.1})")
        };
        if let Some(Attach { offer, connect, settle }) = &self.attach {
            let steps = [
                ("offer a disk", offer),
                ("connect a frontend", connect),
                ("connect it and serve its first reads", settle),
            ];
            for (what, time) in steps {
                sizes.push((format!("CPU time of platter to {what}"), milliseconds(*time)));
            }
        }
        if let Some(starts) = &self.starts {
            let seconds = |time: Median| format!("{:.2} s ({:.2}-{:.2})", time.median, time.low, time.high);
            sizes.push((
                "from xl create".to_owned(),
                format!(
                    "an image that only prints {}, platter ready {}, Linux driver domain {}: {}",
                    seconds(starts.floor),
                    seconds(starts.platter),
                    seconds(starts.linux),
                    starts.ratio().map_or_else(
                        || "platter is not above the floor".to_owned(),
                        |ratio| format!("above the floor {ratio:.1} times platter's")
                    )
                ),
            ));
            sizes.push(("CPU time of platter until ready".to_owned(), milliseconds(starts.platter_cpu)));
        }
        sizes
    }
}
