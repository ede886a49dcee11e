//! Networks of a test's own, any way of which can be cut.
//!
//! Job: nodes, each a network namespace with an address of its own, joined by a router in one more namespace. The test itself is a node too
//! ([`TEST`]): a way leads from the host into the router. A cut is a rule of the router that drops what comes from one node for another
//! without a word, as a network that is broken somewhere in the middle does; [`Network::unplug`] takes a node's cable out.
//!
//! Invariant: nothing is left of a network that was dropped, nor, once another one is made, of one whose process was killed: names of
//! namespaces hold the number of the process that made them, and the host's interface goes with the router.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};
use crate::process;

/// The test's own node.
pub const TEST: usize = 0;

/// Where names of namespaces are files.
const NAMES: &str = "/run/netns";
const PREFIX: &str = "kubewharf-";
/// What is kept for measurements between networks (RFC 2544), so that no host is there. Each network has sixteen addresses of it.
const FIRST: u32 = 198 << 24 | 18 << 16;
const SUBNETS: u32 = 1 << 13;
/// The router's place in its subnet, behind all nodes.
const ROUTER: u32 = 14;
/// Other programs may use some of the addresses.
const ATTEMPTS_MAX: u32 = 64;
/// Before the rules that lead to routes.
const PREFERENCE: &str = "100";

/// Nodes that reach each other. Dropping it removes them; what still runs in them has no network then.
#[derive(Debug)]
pub struct Network {
    name: String,
    subnet: u32,
    cuts: Vec<(usize, usize)>,
    unplugged: Vec<usize>,
}

impl Network {
    /// Makes the nodes 1 to `nodes`, eight at most, each of which reaches all others and [`TEST`].
    ///
    /// # Errors
    /// When the package iproute2 is not there, or this process may make no namespaces.
    pub fn start(nodes: usize) -> Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        assert!(nodes <= 8, "a subnet has no room for {nodes} nodes");
        remove_stale();
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let mut network = Self {
            name: format!("{PREFIX}{}-{serial}", std::process::id()),
            subnet: 0,
            cuts: Vec::new(),
            unplugged: Vec::new(),
        };
        network.make_router().map_err(|error| Error::NoNetwork { why: error.to_string() })?;
        network.join_test(std::process::id() % SUBNETS + serial)?;
        for node in 1..=nodes {
            network.join(node)?;
        }
        Ok(network)
    }

    /// A node's address.
    pub fn address(&self, node: usize) -> IpAddr {
        IpAddr::V4(self.address_of(node))
    }

    /// What [`process::Spec::inside`] takes for a program on that node.
    pub fn inside(&self, node: usize) -> String {
        format!("--net={NAMES}/{}", self.namespace(node))
    }

    /// Drops all that one node sends to another from now on.
    ///
    /// # Errors
    /// When the router does not take the rule.
    pub fn cut_from(&mut self, from: usize, to: usize) -> Result<()> {
        self.rule("add", from, to)?;
        self.cuts.push((from, to));
        Ok(())
    }

    /// Drops all between two nodes from now on.
    ///
    /// # Errors
    /// As [`Network::cut_from`].
    pub fn cut(&mut self, one: usize, other: usize) -> Result<()> {
        self.cut_from(one, other)?;
        self.cut_from(other, one)
    }

    /// Takes a node's cable out: nothing reaches it, and nothing of it reaches anybody.
    ///
    /// # Errors
    /// When the router does not do that.
    pub fn unplug(&mut self, node: usize) -> Result<()> {
        self.at_router(&["link", "set", &port(node), "down"])?;
        self.unplugged.push(node);
        Ok(())
    }

    /// Ends all cuts and plugs all cables in.
    ///
    /// # Errors
    /// As [`Network::cut_from`].
    pub fn heal(&mut self) -> Result<()> {
        while let Some((from, to)) = self.cuts.pop() {
            self.rule("del", from, to)?;
        }
        while let Some(node) = self.unplugged.pop() {
            self.at_router(&["link", "set", &port(node), "up"])?;
            // It went with the cable.
            self.add_route(node)?;
        }
        Ok(())
    }

    fn address_of(&self, node: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet + 1 + u32::try_from(node).expect("few nodes"))
    }

    fn router_address(&self) -> String {
        format!("{}/32", Ipv4Addr::from_bits(self.subnet + ROUTER))
    }

    fn namespace(&self, node: usize) -> String {
        format!("{}-{node}", self.name)
    }

    fn router(&self) -> String {
        format!("{}-router", self.name)
    }

    /// The test's end of the cable to the router. Names of interfaces have fifteen characters.
    fn interface(&self) -> String {
        self.name.replace(PREFIX, "kw")
    }

    fn make_router(&self) -> Result<()> {
        ip(&["netns", "add", &self.router()])?;
        // A filter for what comes the wrong way would make each cut one in both directions. Interfaces take over what is said here.
        let forward = "cd /proc/sys/net/ipv4 && echo 1 >ip_forward && echo 0 >conf/all/rp_filter && echo 0 >conf/default/rp_filter";
        ip(&["netns", "exec", &self.router(), "sh", "-c", forward])?;
        // What is for a node whose cable is out gets no answer.
        self.at_router(&["route", "add", "blackhole", "default"])
    }

    /// Finds addresses that nobody on this host uses, and takes them.
    fn join_test(&mut self, first: u32) -> Result<()> {
        let interface = self.interface();
        self.add_cable(TEST, &["name", &interface, "netns", &std::process::id().to_string()])?;
        ip(&["link", "set", &interface, "up"])?;
        let mut attempt = 0;
        loop {
            self.subnet = FIRST + (first + attempt) % SUBNETS * 16;
            match ip(&["route", "add", &self.router_address(), "dev", &interface]) {
                Ok(()) => break,
                Err(error) if attempt == ATTEMPTS_MAX => return Err(error),
                Err(_) => attempt += 1,
            }
        }
        self.plug_in(TEST)?;
        ip(&["address", "add", &format!("{}/32", self.address_of(TEST)), "dev", &interface])?;
        self.add_way(&[], &interface, TEST)
    }

    fn join(&self, node: usize) -> Result<()> {
        let namespace = self.namespace(node);
        ip(&["netns", "add", &namespace])?;
        self.add_cable(node, &["name", "eth0", "netns", &namespace])?;
        self.plug_in(node)?;
        let within = |words: &[&str]| ip(&[&["-n", &namespace][..], words].concat());
        within(&["link", "set", "lo", "up"])?;
        within(&["link", "set", "eth0", "up"])?;
        within(&["address", "add", &format!("{}/32", self.address_of(node)), "dev", "eth0"])?;
        within(&["route", "add", &self.router_address(), "dev", "eth0"])?;
        self.add_way(&["-n", &namespace], "eth0", node)
    }

    /// A cable from the router's port for a node to what these words say.
    fn add_cable(&self, node: usize, end: &[&str]) -> Result<()> {
        self.at_router(&[&["link", "add", &port(node), "type", "veth", "peer"][..], end].concat())
    }

    /// The router's end of the cable, with a route to the node.
    fn plug_in(&self, node: usize) -> Result<()> {
        self.at_router(&["address", "add", &self.router_address(), "dev", &port(node)])?;
        self.at_router(&["link", "set", &port(node), "up"])?;
        self.add_route(node)
    }

    fn add_route(&self, node: usize) -> Result<()> {
        self.at_router(&["route", "replace", &format!("{}/32", self.address_of(node)), "dev", &port(node)])
    }

    /// The node's way to all others.
    fn add_way(&self, within: &[&str], interface: &str, node: usize) -> Result<()> {
        let subnet = format!("{}/28", Ipv4Addr::from_bits(self.subnet));
        let router = Ipv4Addr::from_bits(self.subnet + ROUTER).to_string();
        let source = self.address_of(node).to_string();
        let words = ["route", "add", &subnet, "via", &router, "dev", interface, "src", &source];
        ip(&[within, &words[..]].concat())
    }

    fn rule(&self, action: &str, from: usize, to: usize) -> Result<()> {
        let (from, to) = (self.address_of(from).to_string(), self.address_of(to).to_string());
        self.at_router(&["rule", action, "from", &from, "to", &to, "blackhole", "pref", PREFERENCE])
    }

    fn at_router(&self, words: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.router()][..], words].concat())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove(&format!("{}-", self.name));
    }
}

/// The router's port for a node.
fn port(node: usize) -> String {
    format!("port{node}")
}

/// Removes what processes have left behind that are no more.
fn remove_stale() {
    for name in names() {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another process may be faster.
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}

fn remove(prefix: &str) {
    for name in names().filter(|name| name.starts_with(prefix)) {
        if let Err(error) = ip(&["netns", "delete", &name]) {
            eprintln!("{error}");
        }
    }
}

fn names() -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(NAMES).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with(PREFIX))
}

fn ip(words: &[&str]) -> Result<()> {
    match process::run(Command::new("ip").args(words)) {
        Ok(_) => Ok(()),
        Err(Error::Start { source, .. }) if source.kind() == io::ErrorKind::NotFound => Err(Error::NoNetwork {
            why: "the package iproute2 is missing, which `make fault-tools` installs".to_owned(),
        }),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::folder::Folder;
    use crate::process::Spec;

    const SOON: Duration = Duration::from_secs(30);

    /// Whether a connection from a node to a listener of the test comes about within a second.
    fn reaches(network: &Network, from: usize, listener: &TcpListener) -> bool {
        let address = listener.local_addr().unwrap();
        let script = format!("exec 3<>/dev/tcp/{}/{}", address.ip(), address.port());
        let inside = network.inside(from);
        process::run(Command::new("nsenter").args([&inside, "timeout", "1", "bash", "-c", &script])).is_ok()
    }

    #[test]
    fn each_way_can_be_cut_and_healed() {
        let mut network = Network::start(2).unwrap();
        let listener = TcpListener::bind((network.address(TEST), 0)).unwrap();
        let all = |network: &Network| [1, 2].map(|node| reaches(network, node, &listener));
        assert_eq!(all(&network), [true, true]);
        network.cut(1, TEST).unwrap();
        assert_eq!(all(&network), [false, true]);
        network.heal().unwrap();
        network.cut_from(TEST, 2).unwrap();
        assert_eq!(all(&network), [true, false], "an answer that is lost is no connection");
        network.heal().unwrap();
        network.cut(1, 2).unwrap();
        assert_eq!(all(&network), [true, true]);
        network.unplug(2).unwrap();
        assert_eq!(all(&network), [true, false]);
        network.heal().unwrap();
        assert_eq!(all(&network), [true, true]);
    }

    #[test]
    fn nothing_is_left_of_a_dropped_network() {
        let network = Network::start(1).unwrap();
        let (name, interface) = (network.name.clone(), network.interface());
        let interface = Path::new("/sys/class/net").join(interface);
        assert!(interface.exists() && names().any(|found| found.starts_with(&name)));
        drop(network);
        assert!(!names().any(|found| found.starts_with(&format!("{name}-"))));
        // The kernel takes its time.
        let deadline = Instant::now() + SOON;
        while interface.exists() {
            assert!(Instant::now() < deadline, "the interface is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Not a test by itself: the next test runs it in a process of its own, which it kills.
    #[test]
    fn makes_a_network_and_waits_to_be_killed() {
        let Some(folder) = std::env::var_os("MAKER_OF_A_NETWORK") else {
            return;
        };
        let network = Network::start(1).unwrap();
        std::fs::write(Path::new(&folder).join("name.new"), &network.name).unwrap();
        std::fs::rename(Path::new(&folder).join("name.new"), Path::new(&folder).join("name")).unwrap();
        std::thread::sleep(Duration::from_secs(600));
    }

    #[test]
    fn what_a_killed_process_has_left_is_removed_with_the_next_network() {
        let folder = Folder::new("network").unwrap();
        let mut maker = Spec::new("maker", std::env::current_exe().unwrap(), folder.path())
            .args(["--exact", "network::tests::makes_a_network_and_waits_to_be_killed"])
            .env("MAKER_OF_A_NETWORK", folder.path())
            .start()
            .unwrap();
        let name = || std::fs::read_to_string(folder.path().join("name"));
        maker.wait_until(SOON, |_| name().is_ok()).unwrap();
        maker.kill();
        let left = || names().any(|found| found.starts_with(&format!("{}-", name().unwrap())));
        drop(Network::start(1).unwrap());
        assert!(!left());
    }
}
