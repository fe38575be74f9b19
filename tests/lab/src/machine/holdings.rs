//! What a domain holds of Xen's and xenstore's resources, to see that nothing is left when its work is over.
//!
//! Xen tells on its console (debug keys e and g), xenstore by its tree and its daemon's control interface.

use std::collections::BTreeSet;

use anyhow::Result;

use super::{COMMAND_LIMIT, Daemon, Machine};

/// Event channels, grants of others that are mapped, nodes, watches and devices of one domain: a line for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holdings(BTreeSet<String>);

impl Holdings {
    /// What `domain` holds now, the error nodes it leaves for the administrator excepted.
    ///
    /// # Errors
    /// Xen or xenstore cannot be asked.
    pub(crate) fn of(machine: &Machine, domain: u32) -> Result<Self> {
        let mut all = ports(&machine.xen_dump('e')?, domain);
        all.extend(grants(&machine.xen_dump('g')?, domain));
        let tree = machine.dom0(&format!("xenstore-ls -f -p /local/domain/{domain}"))?;
        all.extend(nodes(&tree, domain));
        all.extend(devices(&machine.dom0("xenstore-ls -f /libxl")?, domain));
        all.extend(match machine.daemon() {
            Daemon::Oxenstored => {
                let said = machine.dom0_answer("xenstore-control watches", COMMAND_LIMIT)?;
                // E2BIG: they do not fit one message.
                if said.text.contains("Error 7") {
                    ["watches, more than can be listed".to_owned()].into()
                } else {
                    watches(&said.success("dom0", "xenstore-control watches")?, domain)
                }
            }
            Daemon::Xenstored => quota(&machine.dom0(&format!("xenstore-control quota {domain}"))?),
        });
        Ok(Self(all))
    }

    /// What is held here and was not `before`.
    pub(crate) fn beyond(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// A dead domain that Xen keeps because something of it is in use: `xl list` has no name for it.
pub(crate) fn zombies(list: &str) -> Vec<String> {
    list.lines().filter(|line| line.starts_with("(null)")).map(str::to_owned).collect()
}

/// `Event channel information for domain 3:`, then a line for each port (Xen `common/event_channel.c`).
fn ports(dump: &str, domain: u32) -> BTreeSet<String> {
    let head = format!("information for domain {domain}:");
    let section = dump.lines().skip_while(|line| !line.contains(&head)).skip(1);
    let lines = section.take_while(|line| !line.contains("information for domain"));
    let port = |line: &str| Some(line.split_once(" [")?.0.rsplit(' ').next()?.to_owned());
    lines.filter(|line| line.contains("]: s=")).filter_map(port).map(|port| format!("port {port}")).collect()
}

/// `grant-table for remote d5`, then `[reference] user frame …` for each grant in use (Xen `common/grant_table.c`).
fn grants(dump: &str, domain: u32) -> BTreeSet<String> {
    let mut owner = "";
    let mut found = BTreeSet::new();
    for line in dump.lines() {
        if let Some((_, rest)) = line.split_once("grant-table for remote ") {
            owner = rest.split(' ').next().unwrap_or_default();
        }
        let Some((reference, rest)) = line.split_once('[').and_then(|(_, rest)| rest.split_once(']')) else {
            continue;
        };
        let user = rest.split_whitespace().next().and_then(|user| user.parse::<u32>().ok());
        if user == Some(domain) {
            found.insert(format!("grant {reference} of {owner}"));
        }
    }
    found
}

/// `/path = "value"   (n3,r0)` where the first permission names the owner.
fn nodes(tree: &str, domain: u32) -> BTreeSet<String> {
    let errors = format!("/local/domain/{domain}/error");
    let node = |line: &str| {
        let (path, owner) = (line.split(" = ").next()?, line.rsplit_once("(n")?.1);
        let owner: u32 = owner.split([',', ')']).next()?.parse().ok()?;
        (owner == domain && !path.starts_with(&errors)).then(|| format!("node {path}"))
    };
    tree.lines().filter_map(node).collect()
}

/// The toolstack's own records of devices that have their backend in `domain`.
fn devices(libxl: &str, domain: u32) -> BTreeSet<String> {
    let backend = format!("/backend = \"/local/domain/{domain}/");
    let ours = libxl.lines().filter(|line| line.contains(&backend));
    ours.map(|line| format!("device {line}")).collect()
}

/// oxenstored names each: `watch D3: backend token`.
fn watches(all: &str, domain: u32) -> BTreeSet<String> {
    let ours = format!("watch D{domain}: ");
    all.lines().filter(|line| line.starts_with(&ours)).map(str::to_owned).collect()
}

/// xenstored counts them: `watches : 4`.
fn quota(said: &str) -> BTreeSet<String> {
    said.lines().filter(|line| line.starts_with("watches")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(found: BTreeSet<String>) -> Vec<String> {
        found.into_iter().collect()
    }

    #[test]
    fn ports_are_those_of_one_domain() {
        let dump = "(XEN) 'e' pressed -> dumping event-channel info\n\
                    (XEN) Event channel information for domain 1:\n(XEN) Polling vCPUs: {}\n\
                    (XEN)     port [p/m/s]\n(XEN)        1 [0/0/0]: s=3 n=0 x=0 d=0 p=22\n\
                    (XEN)       12 [0/1/  -   ]: s=5 n=0 x=0 v=0\n\
                    (XEN) Event channel information for domain 11:\n(XEN)        3 [0/0/0]: s=3 n=0 x=0 d=0 p=22\n";
        assert_eq!(lines(ports(dump, 1)), ["port 1", "port 12"]);
        assert_eq!(lines(ports(dump, 11)), ["port 3"]);
        assert!(ports(dump, 2).is_empty());
    }

    #[test]
    fn grants_are_those_that_one_domain_uses() {
        let dump = "(XEN) gnttab_usage_print_all [ key 'g' pressed\n\
                    (XEN) [ref] localdom mfn      pin          localdom gmfn     flags\n\
                    (XEN) grant-table for remote d5 (v1)\n(XEN)   1 frames (64 max), 0 maptrack frames (1024 max)\n\
                    (XEN) [0x000]      0 0x17d4f6 0x00000002          0 0x17d4f6 0x19\n\
                    (XEN) [0x2f8]      3 0x17d4fe 0x00000001          3 0x17d4fe 0x19\n\
                    (XEN) gnttab_usage_print_all ] done\n";
        assert_eq!(lines(grants(dump, 3)), ["grant 0x2f8 of d5"]);
        assert!(grants(dump, 5).is_empty());
    }

    #[test]
    fn nodes_are_those_it_owns_but_for_errors() {
        let tree = "/local/domain/3/control = \"\"   (n0,r3)\n/local/domain/3/data/ready = \"1\"   (n3)\n\
                    /local/domain/3/error/backend/vbd = \"no\"   (n3)\n\
                    /local/domain/3/backend/vbd/5/51728/params = \"a = (n9)\"   (n3,r5)\n\
                    /local/domain/3/x = \"\"   (n31,r3)\n";
        assert_eq!(
            lines(nodes(tree, 3)),
            ["node /local/domain/3/backend/vbd/5/51728/params", "node /local/domain/3/data/ready"]
        );
    }

    #[test]
    fn devices_are_those_served_by_it() {
        let libxl = "/libxl/5/device/vbd/51728/backend = \"/local/domain/3/backend/vbd/5/51728\"\n\
                     /libxl/5/device/vbd/51744/backend = \"/local/domain/31/backend/vbd/5/51744\"\n";
        assert_eq!(devices(libxl, 3).len(), 1);
    }

    #[test]
    fn watches_are_named_or_counted() {
        let said = "watch D1: backend backend\nwatch D11: backend backend\nwatch A1: x y\n";
        assert_eq!(lines(watches(said, 1)), ["watch D1: backend backend"]);
        let said = "Domain 1:\nnodes           :       22\nwatches         :        4\n";
        assert_eq!(lines(quota(said)), ["watches         :        4"]);
    }

    #[test]
    fn zombies_have_no_name() {
        let list = "Name   ID   Mem VCPUs\tState\tTime(s)\nDomain-0   0  1024  1  r-----  1.0\n(null)   5   0  1  --p--d  2.0\n";
        assert_eq!(zombies(list).len(), 1);
    }

    #[test]
    fn what_was_there_before_is_no_leftover() {
        let held = |lines: &[&str]| Holdings(lines.iter().map(|line| (*line).to_owned()).collect());
        assert_eq!(held(&["port 1", "port 2"]).beyond(&held(&["port 1", "port 3"])), ["port 2"]);
    }
}
