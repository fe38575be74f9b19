//! The fio jobs that all contenders do.

/// One job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) name: &'static str,
    /// What fio is told.
    pub(super) options: &'static str,
    /// With `--quick` too.
    pub(super) quick: bool,
    /// Hypercalls are counted too: the others cost no others.
    pub(super) traced: bool,
}

/// All of them, as tables have them. Reads and writes go to the whole of a partition.
pub(super) const JOBS: &[Job] = &[
    job("4k-randread-1", "--rw=randread --bs=4k --iodepth=1").quick().traced(),
    job("4k-randread-32", "--rw=randread --bs=4k --iodepth=32").quick().traced(),
    job("4k-randwrite-32", "--rw=randwrite --bs=4k --iodepth=32").quick(),
    job("64k-mixed-16", "--rw=randrw --bs=64k --iodepth=16"),
    job("128k-read-8", "--rw=read --bs=128k --iodepth=8").quick().traced(),
    job("128k-write-8", "--rw=write --bs=128k --iodepth=8"),
    job("1m-read-4", "--rw=read --bs=1m --iodepth=4"),
    job("1m-write-4", "--rw=write --bs=1m --iodepth=4"),
    job("4k-flushed-8", "--rw=randwrite --bs=4k --iodepth=8 --fsync=4"),
];

const fn job(name: &'static str, options: &'static str) -> Job {
    Job { name, options, quick: false, traced: false }
}

impl Job {
    const fn quick(self) -> Self {
        Self { quick: true, ..self }
    }

    const fn traced(self) -> Self {
        Self { traced: true, ..self }
    }
}
