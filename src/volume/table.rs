//! Every disk and partition there is, and the search for the one that a `target=` names. Nothing
//! here is read from disks: `reader` brings the partitions.

use core::fmt;

use heapless::{String, Vec};

use super::names::{self, ById, Name};
use super::{DiskIndex, Mark, Volume, VolumeName};
use crate::limits;
use crate::wire::gpt::{Guid, Label};
use crate::wire::nvme::identify::Identity;
use crate::wire::xenbus::{self, Value};

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// Which one.
    pub index: DiskIndex,
    /// What its controller says it is.
    pub identity: Identity,
    /// Its namespace's number at the controller (NSID).
    pub nsid: u32,
    /// It belongs to guests whole: its blocks are never looked at.
    pub opaque: bool,
    /// The whole of it, or why it cannot be served.
    pub volume: Result<Volume, &'static str>,
}

impl Disk {
    /// Whether `name` is one of its names as a whole disk, with or without `/dev/`.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.is(Name::parse(name))
    }

    fn is(&self, name: Name<'_>) -> bool {
        match name {
            Name::Node(node) => names::is(node, self.index),
            Name::Id(id) => self.behind_id(id) == Some(""),
            Name::PartUuid(_) | Name::PartLabel(_) => false,
        }
    }

    /// What follows one of its ids: nothing, or which part of it is meant.
    fn behind_id<'a>(&self, id: &'a str) -> Option<&'a str> {
        let rest = names::behind(id, ById(&self.identity))?;
        Some(names::behind(rest, format_args!("_{}", self.nsid)).unwrap_or(rest))
    }
}

/// What names a partition, on whatever disk (PARTUUID).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PartUuid {
    /// The entry's own GUID.
    Gpt(Guid),
    /// The disk's signature and the partition's number, both in hexadecimal.
    Mbr(u32, u32),
}

impl fmt::Display for PartUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gpt(guid) => guid.fmt(f),
            Self::Mbr(signature, number) => write!(f, "{signature:08x}-{number:02x}"),
        }
    }
}

/// A partition as its table describes it.
#[derive(Clone, Copy, Debug)]
pub struct Partition {
    /// Its name, with its number in the table.
    pub name: VolumeName,
    /// What names it on any disk.
    pub uuid: PartUuid,
    /// PARTLABEL, or none.
    pub label: Label,
    /// Its blocks, where they are blocks that a partition of its table can have.
    pub range: Option<Volume>,
}

impl Partition {
    fn is(&self, name: Name<'_>, disk: &Disk) -> bool {
        let number = self.name.partition.unwrap_or(0);
        match name {
            Name::Node(node) => names::is(node, self.name),
            Name::Id(id) => {
                disk.behind_id(id).is_some_and(|rest| names::is(rest, format_args!("-part{number}")))
            }
            Name::PartUuid(uuid) => {
                // The longest has 36 characters.
                let own = String::<36>::try_from(xenbus::cut(self.uuid).as_str());
                own.is_ok_and(|own| own.eq_ignore_ascii_case(uuid))
            }
            Name::PartLabel(label) => names::is_label(label, &self.label),
        }
    }
}

/// Why a volume that there is cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// Its disk cannot be served, or is gone.
    Disk(&'static str),
    /// The rest of its table is still to be read, and may say otherwise.
    Unread,
    /// It has no blocks, or some that no partition of its table can have.
    Outside,
    /// It covers a part of the table that describes it.
    Table,
    /// It has blocks in common with this other partition.
    Overlaps(VolumeName),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(reason) => f.write_str(reason),
            Self::Unread => f.write_str("its partition table is still being read"),
            Self::Outside => f.write_str("its blocks are not within those for partitions"),
            Self::Table => f.write_str("it covers the partition table"),
            Self::Overlaps(other) => write!(f, "it overlaps {other}"),
        }
    }
}

/// Why a name cannot be served, for whoever asked for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameError<'a> {
    /// There are volumes, none of that name.
    Unknown(&'a str),
    /// There are no volumes at all, for this reason.
    Nothing(&'a str),
    /// There is such a volume, but it cannot be used, for this reason.
    Unusable(&'a str, Unusable),
    /// It is the name of more than one volume, these two for example.
    Ambiguous(&'a str, VolumeName, VolumeName),
    /// A disk whose table is read cannot be written whole.
    Whole(VolumeName),
}

impl fmt::Display for NameError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(f, "no volume named \"{}\"", name.as_bytes().escape_ascii()),
            Self::Nothing(reason) => f.write_str(reason),
            Self::Unusable(name, reason) => {
                write!(f, "\"{}\" cannot be used: {reason}", name.as_bytes().escape_ascii())
            }
            Self::Ambiguous(name, one, other) => {
                write!(f, "\"{}\" names both {one} and {other}", name.as_bytes().escape_ascii())
            }
            Self::Whole(disk) => write!(
                f,
                "the whole disk {disk} is for reading only, as its partition table is read at boot: list it \
                 (extra=\"opaque={disk}\"), or attach one of its partitions"
            ),
        }
    }
}

/// There are [`limits::PARTITIONS`] already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

/// All of it.
#[derive(Debug)]
pub struct Volumes {
    disks: Vec<Disk, { limits::DISKS }>,
    partitions: Vec<(Partition, Result<(), Unusable>), { limits::PARTITIONS }>,
    /// The disk whose table is being read: all of it is checked before any of it is believed.
    unread: Option<DiskIndex>,
    /// By controller: why its volumes are gone.
    gone: [Option<&'static str>; limits::CONTROLLERS],
    /// Why there is nothing to serve, where that is known.
    nothing: Option<Value>,
}

impl Volumes {
    /// No volumes.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            disks: Vec::new(),
            partitions: Vec::new(),
            unread: None,
            gone: [None; limits::CONTROLLERS],
            nothing: None,
        }
    }

    /// Says why there is nothing to serve, for as long as that is so.
    pub fn explain_nothing(&mut self, reason: impl fmt::Display) {
        self.nothing = Some(xenbus::cut(reason));
    }

    /// Every disk that was added and is not gone.
    pub fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().filter(|disk| !is_gone(&self.gone, disk.index))
    }

    /// What tells a volume of a disk that was added from others.
    #[must_use]
    pub fn mark(&self, volume: &Volume) -> Option<Mark> {
        let disk = self.disks.iter().find(|disk| disk.index == volume.disk)?;
        Some(Mark { identity: disk.identity, nsid: disk.nsid, first: volume.first })
    }

    /// The partitions of a disk, and why one cannot be used, in the order of their table.
    pub fn partitions(&self, disk: DiskIndex) -> impl Iterator<Item = (&Partition, Result<(), Unusable>)> {
        let on_disk = self.partitions.iter().filter(move |(partition, _)| partition.name.disk == disk);
        on_disk.map(|(partition, state)| (partition, *state))
    }

    /// Adds a disk in place of the one with its index.
    pub fn add_disk(&mut self, disk: Disk) {
        self.remove_partitions(disk.index);
        self.disks.retain(|other| other.index != disk.index);
        let number = disk.index.controller;
        if self.gone.get_mut(number).is_some_and(|gone| gone.take().is_some()) {
            // What the one before had is not there any more.
            self.disks.retain(|other| other.index.controller != number);
            self.partitions.retain(|(partition, _)| partition.name.disk.controller != number);
        }
        // There is room for as many as there are indexes.
        let _ = self.disks.push(disk);
    }

    /// The table of this disk, or of none, is being read now: its partitions are not used meanwhile.
    pub fn set_unread(&mut self, disk: Option<DiskIndex>) {
        self.unread = disk;
    }

    /// Adds a partition of a disk that was added. What overlaps is not to be used, on either side.
    ///
    /// # Errors
    /// There is no room.
    pub fn add_partition(&mut self, partition: Partition) -> Result<(), NoRoom> {
        if self.partitions.is_full() {
            let gone = self.gone;
            self.partitions.retain(|(other, _)| !is_gone(&gone, other.name.disk));
        }
        let mut state = if partition.range.is_some() { Ok(()) } else { Err(Unusable::Outside) };
        for (other, others_state) in &mut self.partitions {
            if let (Some(range), Some(others)) = (&partition.range, &other.range)
                && range.overlaps(others)
            {
                state = Err(Unusable::Overlaps(other.name));
                *others_state = others_state.and(Err(Unusable::Overlaps(partition.name)));
            }
        }
        self.partitions.push((partition, state)).map_err(|_| NoRoom)
    }

    /// The table of a disk has this block: no partition is used that covers it.
    pub fn protect(&mut self, table: &Volume) {
        for (partition, state) in &mut self.partitions {
            if partition.range.is_some_and(|range| range.overlaps(table)) {
                *state = Err(Unusable::Table);
            }
        }
    }

    /// Forgets the partitions of a disk.
    pub fn remove_partitions(&mut self, disk: DiskIndex) {
        self.partitions.retain(|(partition, _)| partition.name.disk != disk);
    }

    /// A controller is gone, for this reason: its volumes cannot be used any more, and who asks for
    /// them is told why, until its disks are added again.
    pub fn remove_controller(&mut self, controller: usize, reason: &'static str) {
        if let Some(gone) = self.gone.get_mut(controller) {
            *gone = Some(reason);
        }
    }

    /// The volume a `target=` names, with or without `/dev/`, and its name.
    ///
    /// # Errors
    /// Why it cannot be served, or not for writing.
    pub fn find<'a>(
        &'a self,
        target: &'a str,
        writable: bool,
    ) -> Result<(VolumeName, Volume), NameError<'a>> {
        if self.disks.is_empty() {
            return Err(NameError::Nothing(self.nothing.as_deref().unwrap_or("there are no disks")));
        }
        let name = Name::parse(target);
        let found = |gone| self.matches(name).filter(move |(name, _)| is_gone(&self.gone, name.disk) == gone);
        // What is gone has a name only as long as nothing else has it.
        let mut here = found(false);
        let one = here.next().or_else(|| found(true).next());
        let (name, volume) = one.ok_or(NameError::Unknown(target))?;
        if let Some((other, _)) = here.next() {
            return Err(NameError::Ambiguous(target, name, other));
        }
        let volume = volume.map_err(|reason| NameError::Unusable(target, reason))?;
        let is_read = |disk: &Disk| disk.index == name.disk && !disk.opaque;
        if writable && name.partition.is_none() && self.disks.iter().any(is_read) {
            return Err(NameError::Whole(name));
        }
        Ok((name, volume))
    }

    /// All volumes of that name.
    fn matches(&self, name: Name<'_>) -> impl Iterator<Item = (VolumeName, Result<Volume, Unusable>)> {
        self.disks.iter().flat_map(move |disk| {
            let gone = self.gone.get(disk.index.controller).copied().flatten();
            let here = move || gone.map_or(Ok(()), |reason| Err(Unusable::Disk(reason)));
            let whole = disk.is(name).then(|| {
                let volume = disk.volume.map_err(Unusable::Disk);
                (VolumeName { disk: disk.index, partition: None }, here().and(volume))
            });
            let is_unread = self.unread == Some(disk.index);
            let read = move || if is_unread { Err(Unusable::Unread) } else { Ok(()) };
            let partitions = self.partitions(disk.index);
            let parts = partitions.filter(move |(partition, _)| partition.is(name, disk));
            whole.into_iter().chain(parts.map(move |(partition, state)| {
                let range = partition.range.ok_or(Unusable::Outside);
                (partition.name, here().and(read()).and(state).and(range))
            }))
        })
    }
}

impl Default for Volumes {
    fn default() -> Self {
        Self::new()
    }
}

fn is_gone(gone: &[Option<&'static str>], disk: DiskIndex) -> bool {
    gone.get(disk.controller).is_some_and(Option::is_some)
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;
    use crate::units::{Block, Sector};
    use crate::volume::tests::{disk, volume};
    use crate::wire::nvme::identify::Text;

    fn text<const N: usize>(text: &str) -> Text<N> {
        let mut bytes = [b' '; N];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Text(bytes)
    }

    fn part(number: u32, first: u64, label: &str) -> Partition {
        let name = VolumeName { disk: DiskIndex { controller: 0, namespace: 0 }, partition: Some(number) };
        let whole = Volume { disk: name.disk, ..volume(512, 1000) };
        let mut units = Label::NONE;
        units.0.iter_mut().zip(label.encode_utf16()).for_each(|(to, unit)| *to = unit);
        let uuid = PartUuid::Mbr(0xabcd_0123, number);
        Partition { name, uuid, label: units, range: whole.part(Block(first), Block(10)) }
    }

    /// A controller with two opaque disks, of which the first has partitions all the same.
    fn volumes() -> Volumes {
        let mut volumes = Volumes::new();
        let identity = Identity { model: text("Fast Disk"), serial: text("S1") };
        for namespace in [0, 1] {
            volumes.add_disk(Disk { identity, ..disk(namespace, volume(512, 1000)) });
        }
        for (number, label) in [(1, "root"), (2, "data"), (10, "data")] {
            volumes.add_partition(part(number, u64::from(number) * 20, label)).unwrap();
        }
        volumes
    }

    #[test]
    fn a_volume_is_found_by_each_of_its_names() {
        let volumes = volumes();
        for (target, expected) in [
            ("nvme0n1", "nvme0n1"),
            ("/dev/nvme0n2", "nvme0n2"),
            ("/dev/nvme0n1p10", "nvme0n1p10"),
            ("disk/by-id/nvme-Fast_Disk_S1_2", "nvme0n2"),
            ("/dev/disk/by-id/nvme-Fast_Disk_S1-part2", "nvme0n1p2"),
            ("/dev/disk/by-id/nvme-Fast_Disk_S1_1-part10", "nvme0n1p10"),
            ("PARTUUID=ABCD0123-0a", "nvme0n1p10"),
            ("PARTLABEL=root", "nvme0n1p1"),
        ] {
            assert_eq!(volumes.find(target, true).unwrap().0.to_string(), expected, "{target}");
        }
        let named =
            |name: &str| volumes.disks().map(|disk| disk.is_named(name)).collect::<std::vec::Vec<_>>();
        assert_eq!(named("/dev/disk/by-id/nvme-Fast_Disk_S1_2"), [false, true]);
        assert_eq!(volumes.find("nvme0n1p2", true).unwrap().1.translate(Sector(0), 1), Ok(Block(40)));
    }

    #[test]
    fn what_is_not_found_is_named() {
        let mut volumes = volumes();
        volumes.add_disk(Disk { volume: Err("its block size is not served"), ..disk(2, volume(512, 1)) });
        let why = |name| volumes.find(name, false).unwrap_err().to_string();
        for name in [
            "/dev/nvme0n9",
            "nvme0n",
            "/dev//dev/nvme0n1",
            "nvme0n2p1",
            "disk/by-id/nvme-Fast_Disk_S1_2-part1",
        ] {
            assert_eq!(why(name), std::format!("no volume named \"{name}\""));
        }
        assert_eq!(why("a\n\"\u{e9}"), "no volume named \"a\\n\\\"\\xc3\\xa9\"");
        assert_eq!(why("/dev/nvme0n3"), "\"/dev/nvme0n3\" cannot be used: its block size is not served");
    }

    #[test]
    fn a_name_of_two_volumes_is_of_neither() {
        let mut volumes = volumes();
        let why = |volumes: &Volumes, name| volumes.find(name, false).unwrap_err().to_string();
        let both = "\"PARTLABEL=data\" names both nvme0n1p2 and nvme0n1p10";
        assert_eq!(why(&volumes, "PARTLABEL=data"), both);
        let both = "\"/dev/disk/by-id/nvme-Fast_Disk_S1\" names both nvme0n1 and nvme0n2";
        assert_eq!(why(&volumes, "/dev/disk/by-id/nvme-Fast_Disk_S1"), both);
        // One that cannot be used has its name all the same.
        volumes.add_partition(part(11, 205, "root")).unwrap();
        assert_eq!(why(&volumes, "PARTLABEL=root"), "\"PARTLABEL=root\" names both nvme0n1p1 and nvme0n1p11");
        assert_eq!(why(&volumes, "nvme0n1p11"), "\"nvme0n1p11\" cannot be used: it overlaps nvme0n1p10");
        assert_eq!(why(&volumes, "nvme0n1p10"), "\"nvme0n1p10\" cannot be used: it overlaps nvme0n1p11");
    }

    #[test]
    fn an_empty_table_says_why() {
        let mut volumes = Volumes::new();
        assert_eq!(volumes.find("nvme0n1", true).unwrap_err().to_string(), "there are no disks");
        volumes.explain_nothing("no PCI device was given to this domain");
        let why = volumes.find("nvme0n1", true).unwrap_err().to_string();
        assert_eq!(why, "no PCI device was given to this domain");
        volumes.add_disk(disk(0, volume(512, 1)));
        assert_eq!(volumes.find("x", true).unwrap_err(), NameError::Unknown("x"));
    }

    #[test]
    fn a_disk_whose_table_is_read_is_not_written_whole() {
        let mut volumes = Volumes::new();
        volumes.add_disk(Disk { opaque: false, ..disk(0, volume(512, 1000)) });
        volumes.add_disk(disk(1, volume(512, 1000)));
        volumes.add_partition(part(1, 20, "")).unwrap();
        assert!(volumes.find("nvme0n1", false).is_ok() && volumes.find("nvme0n1p1", true).is_ok());
        let why = volumes.find("/dev/nvme0n1", true).unwrap_err().to_string();
        assert!(why.contains("(extra=\"opaque=nvme0n1\")") && why.len() <= limits::VALUE, "{why}");
    }

    #[test]
    fn what_a_controller_takes_with_it_says_so_until_it_is_back() {
        let mut volumes = volumes();
        volumes.remove_controller(0, "its controller was detached");
        for name in ["nvme0n2", "nvme0n1p1", "PARTLABEL=root"] {
            let why = volumes.find(name, true).unwrap_err().to_string();
            assert_eq!(why, std::format!("\"{name}\" cannot be used: its controller was detached"));
        }
        // The same disk behind another controller has the names to itself.
        let index = DiskIndex { controller: 3, namespace: 0 };
        volumes.add_disk(Disk { index, ..disk(0, volume(512, 1000)) });
        let name = VolumeName { disk: index, partition: Some(1) };
        let moved = part(1, 20, "root");
        let range = moved.range.map(|range| Volume { disk: index, ..range });
        volumes.add_partition(Partition { name, range, ..moved }).unwrap();
        assert_eq!(volumes.find("PARTLABEL=root", true).unwrap().0, name);
        volumes.add_disk(disk(0, volume(512, 1000)));
        assert!(volumes.find("nvme0n1", true).is_ok() && volumes.find("nvme0n1p1", true).is_err());
        assert_eq!(volumes.find("nvme0n2", true).unwrap_err(), NameError::Unknown("nvme0n2"));
        assert!(volumes.find("nvme3n1", true).is_ok() && volumes.find("nvme3n1p1", true).is_ok());
    }

    #[test]
    fn the_table_is_bounded_and_what_is_gone_gives_way() {
        let mut volumes = volumes();
        let mut added =
            |number| volumes.add_partition(Partition { range: None, ..part(100 + number, 0, "") }).is_ok();
        assert_eq!((0..1000_u32).filter(|number| added(*number)).count(), limits::PARTITIONS - 3);
        let index = DiskIndex { controller: 1, namespace: 0 };
        volumes.add_disk(Disk { index, ..disk(0, volume(512, 1000)) });
        let name = VolumeName { disk: index, partition: Some(1) };
        let other = Partition { name, ..part(1, 20, "") };
        assert_eq!(volumes.add_partition(other), Err(NoRoom));
        volumes.remove_controller(0, "its controller was detached");
        assert_eq!(volumes.add_partition(other), Ok(()));
        assert!(volumes.find("nvme1n1p1", true).is_ok());
    }
}
