//! `cargo bench --package platter-bench`: instructions of the core for requests of one shape, from the guests' events
//! to their answers, under callgrind. Beside them stand calls to the hypervisor, writes to the controller's registers,
//! and all calls of `hal`, so that nothing is hidden behind it. What the world does behind `hal` is not counted.
//!
//! Each figure is held to what is recorded here, and fails above it by more than 2 %. Whoever changes one says why in
//! the commit; one that falls is recorded too, or else the next rise goes unnoticed.

#![expect(missing_docs, reason = "gungraun's macros make modules of these")]

use std::hint::black_box;

use gungraun::{
    Callgrind, EntryPoint, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group,
    main,
};
use platter_bench::{Rig, Shape};

/// Requests that each guest makes.
const REQUESTS: u32 = 1000;

/// What may be more than is recorded, in percent.
const SLACK: u64 = 2;

/// A read of 4 KiB whose page stays mapped, and one whose page is mapped for it.
const PERSISTENT: Shape = Shape { pages: 1, persistent: true, queues: 1 };
const MAPPED: Shape = Shape { pages: 1, persistent: false, queues: 1 };

/// The first of them from a guest with as many rings as Linux has on four processors.
const FOUR_QUEUES: Shape = Shape { queues: 4, ..PERSISTENT };

/// The largest read without segments in a page of their own, 44 KiB; one of 128 KiB, Linux's largest by default, and
/// of 1 MiB.
const DIRECT: Shape = Shape { pages: 11, persistent: false, queues: 1 };
const INDIRECT: Shape = Shape { pages: 32, persistent: false, queues: 1 };
const PERSISTENT_INDIRECT: Shape = Shape { persistent: true, ..INDIRECT };
const LARGEST: Shape = Shape { pages: 256, persistent: false, queues: 1 };

/// Guests that are ready, and how many requests each of them makes at a time.
fn ready(guests: u16, shape: Shape, batch: u32) -> (Rig, u32, f64) {
    (Rig::new(guests, shape), batch, f64::from(guests) * f64::from(REQUESTS))
}

/// Says what a request cost besides.
fn say((rig, requests): (Rig, f64)) {
    let calls = rig.calls();
    let [hypercalls, writes, all] =
        [calls.hypercalls, calls.mmio_writes, calls.all].map(|count| count as f64 / requests);
    println!("a request: {hypercalls:.3} hypercalls, {writes:.3} MMIO writes, {all:.3} calls of hal");
}

/// So many instructions a request are recorded.
fn recorded(instructions: u64, guests: u64) -> LibraryBenchmarkConfig {
    let limit = instructions * guests * u64::from(REQUESTS) * (100 + SLACK) / 100;
    let mut callgrind = Callgrind::with_args(["--toggle-collect=*outside::outside*", "--cache-sim=no"]);
    callgrind
        .entry_point(EntryPoint::Custom("*counted_turn*".to_owned()))
        .hard_limits([(EventKind::Ir, limit)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

#[library_benchmark(setup = ready, teardown = say)]
#[bench::persistent_4k_one_at_a_time(args = (1, PERSISTENT, 1), config = recorded(3582, 1))]
#[bench::persistent_4k_batch_32(args = (1, PERSISTENT, 32), config = recorded(1429, 1))]
#[bench::persistent_4k_one_at_a_time_64_vbds(args = (64, PERSISTENT, 1), config = recorded(1902, 64))]
#[bench::persistent_4k_batch_32_64_vbds(args = (64, PERSISTENT, 32), config = recorded(1485, 64))]
#[bench::persistent_4k_batch_32_4_queues(args = (1, FOUR_QUEUES, 32), config = recorded(1458, 1))]
#[bench::mapped_4k_one_at_a_time(args = (1, MAPPED, 1), config = recorded(3902, 1))]
#[bench::mapped_4k_batch_32(args = (1, MAPPED, 32), config = recorded(1458, 1))]
#[bench::direct_44k_batch_32(args = (1, DIRECT, 32), config = recorded(3993, 1))]
#[bench::indirect_128k_batch_32(args = (1, INDIRECT, 32), config = recorded(9709, 1))]
#[bench::persistent_128k_batch_32(args = (1, PERSISTENT_INDIRECT, 32), config = recorded(10968, 1))]
#[bench::indirect_1m_one_at_a_time(args = (1, LARGEST, 1), config = recorded(73250, 1))]
#[bench::indirect_1m_batch_32(args = (1, LARGEST, 32), config = recorded(72008, 1))]
fn a_thousand_requests((mut rig, batch, requests): (Rig, u32, f64)) -> (Rig, f64) {
    rig.serve(black_box(REQUESTS), batch);
    (rig, requests)
}

library_benchmark_group!(name = core, benchmarks = a_thousand_requests);

main!(library_benchmark_groups = core);
