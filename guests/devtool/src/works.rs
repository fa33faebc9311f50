//! `devtool use [wires|either] [restart|verify]`: uses each disk and each network interface that is a PCI function.
//!
//! Data that was written to a disk is read back, echoes are answered, each with every byte as it was, and the device's
//! own interrupts have come: messages by an ITS, or with `wires` levels of its pin, with `either` messages if it has them. With `restart`, a disk that was
//! written before is only checked; after writing, the machine is reset. With `verify`, each disk must have been written.

use core::time::Duration;

use devtool::blocks::{self, LABEL, LONGEST};
use devtool::echo;
use devtool::text::{Text, disk, sum};

use crate::linux::{Arguments, Errno, File, Memory, Open, restart, sleep};
use crate::sysfs::{self, Function};
use crate::{Failure, println};

/// How often something is looked for, and how often at most: 20 s.
const STEP: Duration = Duration::from_millis(20);
const LOOKS: u32 = 1000;
/// Requests to the gateway.
const ECHOES: u16 = 10;
/// The gateway of QEMU's user network, and an address of ours.
const GATEWAY: [u8; 4] = [10, 0, 2, 2];
const OURS: [u8; 4] = [10, 0, 2, 15];

/// What `use` was asked for.
struct Wanted {
    wires: bool,
    either: bool,
    restart: bool,
    verify: bool,
}

/// Runs the command.
///
/// # Errors
/// What does not work.
pub(crate) fn command(arguments: Arguments) -> Result<(), Failure> {
    let mut wanted = Wanted {
        wires: false,
        either: false,
        restart: false,
        verify: false,
    };
    for index in 2.. {
        match arguments.get(index) {
            None => break,
            Some("wires") => wanted.wires = true,
            Some("either") => wanted.either = true,
            Some("restart") => wanted.restart = true,
            Some("verify") => wanted.verify = true,
            Some(_) => return Err(Failure::Usage),
        }
    }
    let none = |error| Failure::Call("PCI functions", error);
    let (mut disks, mut written, mut interfaces, mut interrupts) = (0, 0, 0, 0);
    let memory = Memory::new(LONGEST + LABEL).map_err(|error| Failure::Call("memory", error))?;
    let memory = memory.into_slice();

    let (functions, count) = sysfs::functions("0x01").map_err(none)?;
    for function in functions.iter().take(count) {
        let found = device(function, "/sys/block")?;
        let name = disk(found.as_str()).ok_or(Failure::Usage)?;
        let name = name.as_str();
        // One that can only be read is not for us to write to.
        if sysfs::line(&["/sys/block/", found.as_str(), "/ro"]).is_some_and(|ro| ro.as_str() != "0")
        {
            continue;
        }
        let (before, _) = interrupts_of(function, &wanted, false)?;
        let wrote = data(function, name, &wanted, memory)?;
        let count = risen(function, name, &wanted, before)?;
        let what = match wrote {
            true => "data written and read back",
            false => "data is as it was before",
        };
        let serial = ["/device/serial", "/serial"]
            .iter()
            .find_map(|file| sysfs::line(&["/sys/block/", found.as_str(), file]))
            .unwrap_or_default();
        tell(function, name, serial.as_str(), count, what);
        disks += 1;
        written += u32::from(wrote);
        interrupts += count.0;
    }
    let (functions, count) = sysfs::functions("0x02").map_err(none)?;
    for function in functions.iter().take(count) {
        let name = device(function, "/sys/class/net")?;
        let name = name.as_str();
        let (before, _) = interrupts_of(function, &wanted, false)?;
        echoes(name).inspect_err(|_| println!("action use: {function} {name}:"))?;
        let count = risen(function, name, &wanted, before)?;
        let address = sysfs::line(&["/sys/class/net/", name, "/address"]).unwrap_or_default();
        tell(
            function,
            name,
            address.as_str(),
            count,
            "every echo came back whole",
        );
        interfaces += 1;
        interrupts += count.0;
    }
    if disks + interfaces == 0 {
        return Err(Failure::Wrong(
            "no PCI function is a disk or a network interface",
        ));
    }
    if wanted.restart && written > 0 {
        println!(
            "action use: {disks} disks and {interfaces} interfaces used, {interrupts} interrupts, resetting"
        );
        return restart();
    }
    println!("action use: ok: {disks} disks, {interfaces} interfaces, {interrupts} interrupts");
    Ok(())
}

fn tell(function: &Function, name: &str, own: &str, (count, chip): (u64, Text<64>), what: &str) {
    let driver = sysfs::driver(function);
    let own = own.trim();
    println!(
        "action use: {function} {name}, {driver}, {own}: {count} interrupts by {chip}, {what}"
    );
}

/// The name of a function's device in a folder of links, once it is there.
fn device(function: &Function, folder: &str) -> Result<Text<32>, Failure> {
    for _ in 0..LOOKS {
        let mut found = None;
        sysfs::each(&[folder], |name| {
            let leads = sysfs::leads_to(&[folder, "/", name]).unwrap_or_default();
            if leads
                .as_str()
                .split('/')
                .any(|part| part == function.as_str())
            {
                found = Text::of(name);
            }
        })
        .map_err(|error| Failure::Call("a folder of devices", error))?;
        if let Some(name) = found {
            return Ok(name);
        }
        sleep(STEP);
    }
    println!("action use: {function}, {}:", sysfs::driver(function));
    Err(Failure::Wrong("the function shows no device"))
}

/// Interrupts that a function has had, and by which chip they come. How they come is known once a driver uses them.
fn interrupts_of(
    function: &Function,
    wanted: &Wanted,
    used: bool,
) -> Result<(u64, Text<64>), Failure> {
    let folder = "/sys/bus/pci/devices/";
    let messages = [folder, function.as_str(), "/msi_irqs"];
    // Linux 6.1 makes the folder before it learns that it may have none.
    let has_messages = sysfs::has_entries(&messages);
    let wires = wanted.wires || wanted.either && !has_messages;
    let mut found = (0, Text::default());
    let mut wrong = None;
    let mut add = |irq: &str| {
        let of = |what| sysfs::line(&["/sys/kernel/irq/", irq, what]).unwrap_or_default();
        match sum(of("/per_cpu_count").as_str()) {
            Some(count) => found.0 += count,
            None => wrong = Some("an interrupt's count is no number"),
        }
        let chip = of("/chip_name");
        if let Some(chip) = Text::of(chip.as_str()) {
            found.1 = chip;
        }
        let kind = if wires { "level" } else { "edge" };
        let is_so = match wires {
            true => !chip.as_str().starts_with("ITS"),
            false => !cfg!(target_arch = "aarch64") || chip.as_str().starts_with("ITS"),
        };
        if !is_so || of("/type").as_str() != kind {
            wrong = Some("an interrupt comes by another chip, or in another way");
        }
    };
    let path = [folder, function.as_str(), "/irq"];
    let listed = match (has_messages, wires) {
        (true, true) => return Err(Failure::Wrong("the function has message interrupts")),
        (false, false) => return Err(Failure::Wrong("the function has no message interrupts")),
        (true, false) => sysfs::each(&messages, add),
        (false, true) => {
            add(sysfs::line(&path).unwrap_or_default().as_str());
            Ok(())
        }
    };
    listed.map_err(|error| Failure::Call("the function's interrupts", error))?;
    match wrong.filter(|_| used) {
        Some(wrong) => {
            println!("action use: {function}, interrupts by {}:", found.1);
            Err(Failure::Wrong(wrong))
        }
        None => Ok(found),
    }
}

/// How many interrupts have come since.
fn risen(
    function: &Function,
    name: &str,
    wanted: &Wanted,
    before: u64,
) -> Result<(u64, Text<64>), Failure> {
    let (after, chip) = interrupts_of(function, wanted, true)?;
    match after.checked_sub(before) {
        Some(count) if count > 0 => Ok((count, chip)),
        _ => {
            println!("action use: {function} {name}:");
            Err(Failure::Differs("no interrupt came", after, before + 1))
        }
    }
}

/// Writes a disk and reads it back, or if it is to be as it was and has a label only reads it. Whether it was written.
fn data(
    function: &Function,
    name: &str,
    wanted: &Wanted,
    memory: &mut [u8],
) -> Result<bool, Failure> {
    let failed = |what| {
        move |error| {
            println!("action use: {function} {name}:");
            Failure::Call(what, error)
        }
    };
    let whole = |bytes: usize, wanted: usize| match bytes == wanted {
        true => Ok(()),
        false => Err(Failure::Differs(
            "bytes of a request",
            bytes as u64,
            wanted as u64,
        )),
    };
    let file = File::open(&["/dev/", name], Open::DirectWrite).map_err(failed("open"))?;
    let end = file.seek_end().map_err(failed("lseek"))? as u64;
    let pieces = blocks::pieces(end);
    let (label, memory) = memory.split_at_mut(LABEL);
    whole(file.read_at(0, label).map_err(failed("pread"))?, LABEL)?;
    let keep = wanted.restart || wanted.verify;
    let kept = if keep { blocks::salt(label) } else { None };
    let salt = match kept {
        Some(salt) => salt,
        None if wanted.verify => {
            println!("action use: {function} {name}:");
            return Err(Failure::Wrong("the disk has no label"));
        }
        None => {
            // So that nothing that was there before can pass for it.
            let random = File::open(&["/dev/urandom"], Open::Read).map_err(failed("urandom"))?;
            let mut salt = [0; 8];
            random.read_all(&mut salt).map_err(failed("urandom"))?;
            let salt = u64::from_le_bytes(salt);
            for (at, bytes) in pieces {
                let piece = memory.get_mut(..bytes).unwrap_or_default();
                blocks::fill(piece, at, salt);
                whole(file.write_at(at, piece).map_err(failed("pwrite"))?, bytes)?;
            }
            label.copy_from_slice(&blocks::label(salt));
            whole(file.write_at(0, label).map_err(failed("pwrite"))?, LABEL)?;
            salt
        }
    };
    for (at, bytes) in pieces {
        let piece = memory.get_mut(..bytes).unwrap_or_default();
        piece.fill(0);
        // Not as it was written: pages that were exchanged alike both times would come back in order.
        let (first, rest) = piece.split_at_mut(bytes / 3 / LABEL * LABEL);
        let cut = first.len();
        for (at, part) in [(at, first), (at + cut as u64, rest)] {
            if !part.is_empty() {
                let (read, wanted) = (file.read_at(at, part), part.len());
                whole(read.map_err(failed("pread"))?, wanted)?;
            }
        }
        if let Some(place) = blocks::differs(piece, at, salt) {
            println!("action use: {function} {name}:");
            return Err(Failure::Differs(
                "data read back, of the piece at",
                place,
                at,
            ));
        }
    }
    Ok(kept.is_none())
}

/// What a network interface is asked for. [Linux, include/uapi/linux/if.h]
#[repr(C)]
struct Request {
    name: [u8; 16],
    value: [u8; 24],
}

impl Request {
    fn new(interface: &str) -> Self {
        let mut request = Self {
            name: [0; 16],
            value: [0; 24],
        };
        for (place, byte) in request.name.iter_mut().take(15).zip(interface.bytes()) {
            *place = byte;
        }
        request
    }
}

/// An address of IPv4. [Linux, include/uapi/linux/in.h]
fn address(of: [u8; 4]) -> [u8; 16] {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&2_u16.to_ne_bytes());
    address[4..8].copy_from_slice(&of);
    address
}

fn set_address(socket: &File, interface: &str, of: [u8; 4]) -> Result<(), Errno> {
    const SIOCSIFADDR: usize = 0x8916;
    let mut request = Request::new(interface);
    request.value[..16].copy_from_slice(&address(of));
    socket.exchange(SIOCSIFADDR, &mut request).map(|_| ())
}

/// The gateway answers, by this interface.
fn echoes(interface: &str) -> Result<(), Failure> {
    const SOCK_DGRAM: usize = 2;
    const SIOCGIFFLAGS: usize = 0x8913;
    const SIOCSIFFLAGS: usize = 0x8914;
    const IFF_UP: u8 = 1;
    let failed = |what| move |error| Failure::Call(what, error);
    let control = File::socket(SOCK_DGRAM, 0).map_err(failed("a socket"))?;
    let mut flags = Request::new(interface);
    control
        .exchange(SIOCGIFFLAGS, &mut flags)
        .map_err(failed("the interface's flags"))?;
    // The first of two bytes on both architectures, which are little-endian.
    flags.value[0] |= IFF_UP;
    control
        .exchange(SIOCSIFFLAGS, &mut flags)
        .map_err(failed("the interface does not come up"))?;
    // Negotiation takes a while.
    let mut looks = 0;
    while sysfs::line(&["/sys/class/net/", interface, "/carrier"]).is_none_or(|c| c.as_str() != "1")
    {
        if looks == LOOKS {
            return Err(Failure::Wrong("the interface has no carrier"));
        }
        looks += 1;
        sleep(STEP);
    }
    set_address(&control, interface, OURS).map_err(failed("the interface's address"))?;
    for number in 0..ECHOES {
        echo(interface, number)?;
    }
    set_address(&control, interface, [0; 4]).map_err(failed("no address for the interface"))
}

/// One request, and its reply within 5 s.
fn echo(interface: &str, number: u16) -> Result<(), Failure> {
    const SOCK_RAW: usize = 3;
    const ICMP: usize = 1;
    const LOOK: Duration = Duration::from_millis(1);
    let failed = |what| move |error| Failure::Call(what, error);
    let socket = File::socket(SOCK_RAW, ICMP).map_err(failed("a raw socket"))?;
    socket.bind_to(interface).map_err(failed("bind"))?;
    socket
        .connect(address(GATEWAY))
        .map_err(failed("connect"))?;
    let request = echo::request(number);
    let request = request.get(..echo::bytes(number)).unwrap_or_default();
    socket.write(request).map_err(failed("send"))?;
    let mut packet = [0; 2048];
    for _ in 0..5000 {
        match socket.read(&mut packet) {
            Ok(bytes) if echo::is_reply(packet.get(..bytes).unwrap_or_default(), number) => {
                return Ok(());
            }
            Ok(_) => {}
            Err(Errno::AGAIN) => sleep(LOOK),
            Err(error) => return Err(Failure::Call("receive", error)),
        }
    }
    Err(Failure::Differs(
        "no whole reply within 5 s: echoes",
        number.into(),
        ECHOES.into(),
    ))
}
