//! How functions are readied for their drivers, or refused.

use super::*;

/// The one function's fault, after everything has settled.
fn fault(function: Function) -> Option<Fault> {
    let mut machine = Machine::new(&[function]);
    machine.run();
    assert!(machine.pci.settled());
    match machine.pci.none_reason() {
        Some(Refusal::Function(_, _, fault)) => {
            assert!(machine.found().is_empty());
            assert_eq!(machine.pciback.functions[0].command(), 0, "what is not used stays off the bus");
            Some(fault)
        }
        Some(other) => panic!("{other}"),
        None => {
            assert_eq!(machine.found().len(), 1);
            None
        }
    }
}

/// The one function's interrupt: it is ready all the same.
fn pirq(function: Function) -> Option<Pirq> {
    let mut machine = Machine::new(&[function]);
    machine.run();
    assert!(machine.pci.settled() && machine.pci.none_reason().is_none());
    machine.found()[0].pirq
}

#[test]
fn an_nvme_controller_is_readied() {
    let mut machine = Machine::new(&[nvme()]);
    machine.run();
    let expected = Found {
        address: Address::parse("0000:00:00.0").unwrap(),
        kind: DeviceKind::Nvme,
        bar: BusAddr(0xfebd_0000),
        bar_len: 0x4000,
        pirq: Some(Pirq(55)),
    };
    assert_eq!(machine.found(), [expected]);
    assert!(machine.pci.settled() && machine.pci.none_reason().is_none());
    for (node, value) in [("pci-op-ref", "11"), ("event-channel", "9"), ("magic", "7"), ("state", "4")] {
        assert_eq!(machine.node(&format!("device/pci/0/{node}")), value);
    }
    assert_eq!(machine.pci.port(), Some(PORT));
    assert_eq!(machine.pciback.functions[0].command(), 0b110, "memory decoding and bus mastering");
    assert!(machine.pciback.functions[0].msix);
    assert_eq!(machine.pci.deadline(), None);
}

#[test]
fn what_the_log_says_of_it() {
    let ready = |interrupt| probe::Ready {
        found: Found {
            address: Address::parse("0000:00:00.0").unwrap(),
            kind: DeviceKind::Nvme,
            bar: BusAddr(0xfebd_0000),
            bar_len: 0x4000,
            pirq: None,
        },
        identity: Identity {
            ids: crate::wire::pci::Ids { vendor: 0x1b36, device: 0x10 },
            class: Class::NVME,
        },
        interrupt,
    };
    assert_eq!(
        ready(Ok(Pirq(55))).to_string(),
        "pci 0000:00:00.0: 1b36:0010 class 010802, BAR0 16 KiB at 0xfebd0000, MSI-X pirq 55"
    );
    assert_eq!(
        ready(Err(probe::NoMsix::Refused(OperationError(-6)))).to_string(),
        "pci 0000:00:00.0: 1b36:0010 class 010802, BAR0 16 KiB at 0xfebd0000, \
         no MSI-X: errno (-6); completions are polled"
    );
}

#[test]
fn a_64_bit_bar_above_4_gib() {
    let mut function = Function::nvme(0x38_0000_0000_0000, 55);
    function.bar_len = 8 << 30;
    let mut machine = Machine::new(&[function]);
    machine.run();
    assert_eq!((machine.found()[0].bar, machine.found()[0].bar_len), (BusAddr(0x38_0000_0000_0000), 8 << 30));
}

#[test]
fn a_32_bit_bar_has_no_second_half() {
    let operations = |low| {
        let mut function = nvme();
        function.words[4] = low;
        let mut machine = Machine::new(&[function]);
        machine.run();
        assert_eq!((machine.found()[0].bar, machine.found()[0].bar_len), (BusAddr(0xfebd_0000), 0x4000));
        machine.hal.notified
    };
    // Read, ones, size, and what was there.
    assert_eq!(operations(0xfebd_0004) - operations(0xfebd_0000), 4);
}

#[test]
fn what_is_on_already_stays_on() {
    for command in [0, 0b010, 0b100, 0b110] {
        let mut function = nvme();
        function.words[1] |= command;
        let mut machine = Machine::new(&[function]);
        machine.run();
        assert_eq!(machine.pciback.functions[0].command(), 0b110, "{command:#b}");
    }
}

#[test]
fn sizing_leaves_the_bar_as_it_was() {
    let mut machine = Machine::new(&[Function::nvme(0x12_3456_0000, 55)]);
    machine.run();
    let page = machine.hal.frame.shared();
    for (at, value) in [(register::BAR0, 0x3456_0004), (register::BAR1, 0x12)] {
        crate::wire::pciif::post(&page, machine.found()[0].address, Operation::Read(at));
        assert!(machine.pciback.step(machine.hal.frame));
        assert_eq!(crate::wire::pciif::reply(&page).unwrap().unwrap().value, value);
    }
}

#[test]
fn functions_that_cannot_be_used() {
    let with = |change: fn(&mut Function)| {
        let mut function = nvme();
        change(&mut function);
        fault(function)
    };
    assert_eq!(with(|_| ()), None);
    assert_eq!(with(|f| f.words[0] = u32::MAX), Some(Fault::Absent));
    assert_eq!(with(|f| f.words[3] = 0x0001_0000), Some(Fault::Layout(1)));
    assert_eq!(with(|f| f.words[3] = 0x0080_0000), None, "more functions in the slot do not matter");
    assert_eq!(with(|f| f.bar_len = 0x1000), Some(Fault::Short));
    assert_eq!(with(|f| f.bar_len = 0x2000), None);
    assert_eq!(with(|f| f.words[4] = 0xe001), Some(Fault::Bar(BarError::Ports)));
    assert_eq!(with(|f| f.words[4] = 0b100), Some(Fault::Bar(BarError::Absent)));
    assert_eq!(with(|f| f.bar_len = 0x1_0001_0000), Some(Fault::Bar(BarError::Impossible)));
}

#[test]
fn an_operation_that_pciback_refuses() {
    let mut machine = Machine::new(&[nvme()]);
    machine.publish("vdev-0", "0000:00:03.00");
    machine.run();
    assert!(machine.pci.settled() && machine.found().is_empty());
    let reason = "pci 0000:00:03.0 cannot be used: reading configuration at 0x00: device not found (-1)";
    assert_eq!(machine.reason(), reason);
}

#[test]
fn msix_tables_must_not_lie_among_the_registers() {
    let with = |table, pending| {
        let mut function = nvme();
        function.words[MSIX as usize / 4 + 1] = table;
        function.words[MSIX as usize / 4 + 2] = pending;
        fault(function)
    };
    assert_eq!(with(0x2000, 0x3000), None);
    assert_eq!(with(0x1ff8, 0x3000), Some(Fault::Covered));
    assert_eq!(with(0x2000, 0x1800), Some(Fault::Covered));
    assert_eq!(with(0x0004, 0x1804), None, "in BAR4 they disturb nobody");
}

#[test]
fn without_msix_a_function_is_ready_all_the_same() {
    let with = |change: fn(&mut Function)| {
        let mut function = nvme();
        change(&mut function);
        pirq(function)
    };
    assert_eq!(with(|_| ()), Some(Pirq(55)));
    assert_eq!(with(|f| f.words[1] = 0), None, "no capabilities");
    assert_eq!(with(|f| f.words[32] = 1), None, "none of them is MSI-X");
    assert_eq!(with(|f| f.words[32] = 0x8001), None, "a list that never ends");
    assert_eq!(with(|f| f.words[32] = 0xfc01), None, "a list that leads into the void");
    assert_eq!(with(|f| f.msix_failure = Some((-6, 0))), None);
    assert_eq!(with(|f| f.msix_failure = Some((0, 3))), None);
    assert_eq!(with(|f| f.pirq = 0), None);
}

#[test]
fn msix_cut_off_by_the_end_of_the_space_is_none() {
    for (at, expected) in [(0xf4_u8, Some(Pirq(55))), (0xf8, None), (0xfc, None)] {
        let mut function = nvme();
        function.words[32] = 1 | u32::from(at) << 8;
        function.words[usize::from(at) / 4] = 0x0011;
        for word in usize::from(at) / 4 + 1..64 {
            function.words[word] = 0x2000;
        }
        assert_eq!(pirq(function), expected);
    }
}

#[test]
fn any_configuration_space_comes_to_an_end() {
    let mut seed = 1_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 32) as u32
    };
    for _ in 0..5_000 {
        let mut function = nvme();
        for _ in 0..1 + random() % 6 {
            function.words[random() as usize % 64] = random();
        }
        function.bar_len = u64::from(random()) << (random() % 40);
        let mut machine = Machine::new(&[function]);
        machine.run();
        assert!(machine.pci.settled());
        assert_eq!(machine.found().is_empty(), machine.pci.none_reason().is_some());
    }
}
