//! What the kernel tells of its devices by files.

use devtool::text::Text;

use crate::linux::{Errno, File, Open, link};

/// What a file has, without the end of its line.
pub(crate) type Line = Text<256>;
/// A PCI function's address.
pub(crate) type Function = Text<16>;

/// Reads a file of a line; nothing if there is no such file or it is longer.
pub(crate) fn line(path: &[&str]) -> Option<Line> {
    let mut bytes = [0; 256];
    let file = File::open(path, Open::Read).ok()?;
    let length = file.read_all(&mut bytes).ok()?;
    let text = core::str::from_utf8(bytes.get(..length)?).ok()?;
    Text::of(text.trim_end())
}

/// Whether there is such a file.
pub(crate) fn is_there(path: &[&str]) -> bool {
    File::open(path, Open::Read).is_ok()
}

/// Whether there is such a folder, and something in it.
pub(crate) fn has_entries(path: &[&str]) -> bool {
    let mut some = false;
    each(path, |_| some = true).is_ok() && some
}

/// Where a link leads.
pub(crate) fn leads_to(path: &[&str]) -> Option<Line> {
    let mut bytes = [0; 256];
    Text::of(link(path, &mut bytes).ok()?)
}

/// The last part of where a link leads.
pub(crate) fn target(path: &[&str]) -> Option<Text<64>> {
    let path = leads_to(path)?;
    Text::of(path.as_str().rsplit('/').next()?)
}

/// Calls a function with each name in a folder; nothing if there is no such folder.
pub(crate) fn each(path: &[&str], mut take: impl FnMut(&str)) -> Result<(), Errno> {
    // A number of eight bytes twice, the entry's length, its type, its name with a zero.
    const LENGTH: usize = 16;
    const NAME: usize = 19;
    let Ok(folder) = File::open(path, Open::Read) else {
        return Ok(());
    };
    let mut bytes = [0; 2048];
    loop {
        let length = folder.entries(&mut bytes)?;
        if length == 0 {
            return Ok(());
        }
        let mut rest = bytes.get(..length).unwrap_or_default();
        while let Some(&[low, high]) = rest.get(LENGTH..LENGTH + 2) {
            let (entry, next) = rest
                .split_at_checked(u16::from_ne_bytes([low, high]).into())
                .ok_or(Errno::INVALID)?;
            let name = entry.get(NAME..).unwrap_or_default();
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            match core::str::from_utf8(name) {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => take(name),
            }
            rest = next;
        }
    }
}

/// At most so many PCI functions are looked at.
pub(crate) const FUNCTIONS: usize = 32;

/// The PCI functions whose class begins with this, in the order of their addresses, and how many there are.
pub(crate) fn functions(class: &str) -> Result<([Function; FUNCTIONS], usize), Errno> {
    let mut functions = [Function::default(); FUNCTIONS];
    let mut count = 0;
    each(&["/sys/bus/pci/devices"], |name| {
        let is_one = line(&["/sys/bus/pci/devices/", name, "/class"])
            .is_some_and(|found| found.as_str().starts_with(class));
        if let (true, Some(name), Some(place)) =
            (is_one, Function::of(name), functions.get_mut(count))
        {
            *place = name;
            count += 1;
        }
    })?;
    if let Some(found) = functions.get_mut(..count) {
        found.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    }
    Ok((functions, count))
}

/// A function's driver.
pub(crate) fn driver(function: &Function) -> Text<64> {
    let path = ["/sys/bus/pci/devices/", function.as_str(), "/driver"];
    target(&path)
        .or_else(|| Text::of("no driver"))
        .unwrap_or_default()
}
