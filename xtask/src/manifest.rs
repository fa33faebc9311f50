//! From a manifest in TOML to the boot bundle.
//!
//! The keys are documented in `docs/manifest.md`. What may be in a manifest is decided by the
//! `bundle` crate alone; here is only how people write it, and where in their file an error is.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use bundle::{
    Bundle, BundleBuilder, Console, ConsoleUart, Device, Field, Firmware, IommuMode, Kernel,
    KernelFormat, Manifest, MsiPolicy, MsiWindow, PeerToPeer, Place, Restart, Start, TcePolicy,
    UnsafeDma, VERSION, VmConfig,
};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use toml::Spanned;

/// What the command line puts in place of the first VM's values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    /// `--kernel`, relative to the working directory. Its format is found by looking at it.
    pub(crate) kernel: Option<PathBuf>,
    /// `--initrd`, relative to the working directory.
    pub(crate) initrd: Option<PathBuf>,
    /// `--append`.
    pub(crate) append: Option<String>,
    /// The console device that the board's hypervisor gives its guests: what that hypervisor does not do is refused,
    /// and not only when it boots.
    pub(crate) console: Option<ConsoleUart>,
}

/// A file that a manifest names by what it is, not by where it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum PayloadName {
    /// `debian:6.1`, `debian:6.12`: Debian's kernel of that series for the board's architecture.
    DebianKernel(&'static str),
    /// `initramfs`: our small initial RAM disk.
    Initramfs,
    /// `guest:NAME`: a bare-metal guest of our own.
    Guest(String),
}

/// The series of Debian's kernel that a manifest can name.
const DEBIAN_SERIES: [&str; 2] = ["6.1", "6.12"];

impl fmt::Display for PayloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DebianKernel(series) => write!(f, "debian:{series}"),
            Self::Initramfs => f.write_str("initramfs"),
            Self::Guest(name) => write!(f, "guest:{name}"),
        }
    }
}

/// Where the bytes of a file are to come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    Path(PathBuf),
    Payload(PayloadName),
}

impl Source {
    /// What a value of a manifest in `directory` means.
    fn parse(value: &str, directory: &Path) -> Result<Self> {
        if value == "initramfs" {
            return Ok(Self::Payload(PayloadName::Initramfs));
        }
        if let Some(series) = value.strip_prefix("debian:") {
            let known = DEBIAN_SERIES.iter().find(|known| **known == series);
            return match known {
                Some(series) => Ok(Self::Payload(PayloadName::DebianKernel(series))),
                None => bail!(
                    "Debian's kernels are {}",
                    DEBIAN_SERIES
                        .map(|known| format!("\"debian:{known}\""))
                        .join(" and ")
                ),
            };
        }
        if let Some(name) = value.strip_prefix("guest:") {
            return Ok(Self::Payload(PayloadName::Guest(name.to_owned())));
        }
        if value.is_empty() {
            bail!("a file name, or \"debian:SERIES\", \"initramfs\" or \"guest:NAME\", is needed");
        }
        Ok(Self::Path(directory.join(value)))
    }
}

/// Builds the boot bundle of a manifest. `payloads` is given a name and the series of all Debian
/// kernels that the manifest asks for: an initial RAM disk has modules for each.
///
/// # Errors
/// A manifest that cannot be read or does not hold, with file, line, column and key; a file that
/// cannot be had, with the key that asks for it.
pub(crate) fn build_bundle(
    manifest: &Path,
    overrides: &Overrides,
    payloads: &dyn Fn(&PayloadName, &[&'static str]) -> Result<PathBuf>,
) -> Result<Vec<u8>> {
    let read = read(manifest, overrides)?;
    let series: Vec<&'static str> = read
        .files
        .iter()
        .filter_map(|file| match file.source {
            Source::Payload(PayloadName::DebianKernel(series)) => Some(series),
            _ => None,
        })
        .collect();
    let mut builder = BundleBuilder::new(&read.manifest);
    for file in &read.files {
        let asks = |why: &str| format!("{}: {why}", file.asked_by);
        let path = match &file.source {
            Source::Path(path) => path.clone(),
            Source::Payload(name) => {
                payloads(name, &series).with_context(|| asks(&format!("cannot provide {name}")))?
            }
        };
        let data = std::fs::read(&path)
            .with_context(|| asks(&format!("cannot read {}", path.display())))?;
        builder
            .file(&file.name, &data)
            .with_context(|| asks("cannot put it into the bundle"))?;
    }
    builder.finish().context("the bundle does not read back")
}

/// Refuses what [`build_bundle`] would refuse without asking for payloads: a faulty manifest, and files that are not
/// there.
///
/// # Errors
/// Those of [`build_bundle`].
pub(crate) fn check(manifest: &Path, overrides: &Overrides) -> Result<()> {
    for file in read(manifest, overrides)?.files {
        if let Source::Path(path) = &file.source {
            path.metadata()
                .with_context(|| format!("{}: cannot read {}", file.asked_by, path.display()))?;
        }
    }
    Ok(())
}

fn read(manifest: &Path, overrides: &Overrides) -> Result<Read> {
    let text = std::fs::read_to_string(manifest)
        .with_context(|| format!("cannot read the manifest {}", manifest.display()))?;
    Reader::new(manifest, &text).read(overrides)
}

/// What is in a bundle: its files, and its manifest as device tree source.
///
/// # Errors
/// A file that cannot be read, or is no bundle.
pub(crate) fn list_bundle(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let bundle = Bundle::parse(&bytes).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    Ok(format!("{bundle}\n{}", bundle.manifest().to_dts()))
}

/// A manifest and the files to go with it.
struct Read {
    manifest: Manifest,
    files: Vec<FileToAdd>,
}

struct FileToAdd {
    name: String,
    source: Source,
    asked_by: String,
}

/// A manifest as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    version: Option<Spanned<u32>>,
    #[serde(default)]
    vm: Vec<Spanned<RawVm>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVm {
    name: Spanned<String>,
    memory: Spanned<Bytes>,
    cpus: Option<Spanned<u32>>,
    pin: Option<Spanned<Vec<u32>>>,
    time_slice_us: Option<Spanned<u32>>,
    start: Option<Spanned<String>>,
    restart: Option<Spanned<String>>,
    kernel: Spanned<String>,
    kernel_format: Option<Spanned<String>>,
    initrd: Option<Spanned<String>>,
    dtb: Option<Spanned<String>>,
    append: Option<Spanned<String>>,
    firmware: Option<Spanned<String>>,
    console: Option<Spanned<String>>,
    serial: Option<Spanned<u32>>,
    iommu: Option<Spanned<String>>,
    msi: Option<Spanned<String>>,
    msi_window: Option<Spanned<RawWindow>>,
    tce_pages: Option<Spanned<RawTcePages>>,
    unsafe_dma: Option<Spanned<String>>,
    #[serde(default)]
    devices: Vec<Spanned<RawDevice>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWindow {
    start: u64,
    size: Bytes,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a list of page sizes, or \"default-window\"")]
enum RawTcePages {
    Word(String),
    Sizes(Vec<Bytes>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDevice {
    host: Spanned<String>,
    guest: Option<Spanned<String>>,
    #[serde(default)]
    p2p: bool,
    smmu: Option<Spanned<u8>>,
}

/// A number of bytes: `536870912`, `"512M"`, `"1 GiB"`.
#[derive(Clone, Copy)]
struct Bytes(u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;

        impl Visitor<'_> for BytesVisitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size: a number of bytes, or a string as \"512M\"")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Bytes, E> {
                u64::try_from(number)
                    .map(Bytes)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Bytes, E> {
                Ok(Bytes(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                parse_bytes(text)
                    .map(Bytes)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(BytesVisitor)
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The text of a manifest, and where each value stands in it.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    spans: HashMap<(Option<usize>, Option<usize>, Field), Range<usize>>,
    files: Vec<FileToAdd>,
    names: HashMap<Source, String>,
}

impl<'a> Reader<'a> {
    fn new(path: &'a Path, text: &'a str) -> Self {
        Self {
            path,
            text,
            spans: HashMap::new(),
            files: Vec::new(),
            names: HashMap::new(),
        }
    }

    fn read(mut self, overrides: &Overrides) -> Result<Read> {
        let raw: RawManifest = toml::from_str(self.text).map_err(|error| {
            let message = error.message().trim().replace('\n', " ");
            anyhow!("{}: {message}", self.location(error.span().unwrap_or(0..0)))
        })?;
        if let Some(version) = raw.version
            && *version.get_ref() != VERSION
        {
            bail!(
                "{}: version: {} is not known; this is version {VERSION}",
                self.location(version.span()),
                version.get_ref()
            );
        }
        let mut vms = Vec::new();
        for (index, vm) in raw.vm.into_iter().enumerate() {
            let none = Overrides::default();
            let overrides = if index == 0 { overrides } else { &none };
            self.spans.insert((Some(index), None, Field::Vm), vm.span());
            vms.push(self.vm(index, vm.into_inner(), overrides)?);
        }
        let manifest = Manifest::new(vms).map_err(|error| {
            let place = error.place;
            anyhow!("{}: {place}: {}", self.place(place), error.problem)
        })?;
        if let Some(console) = overrides.console {
            for (index, vm) in manifest.vms().iter().enumerate() {
                if let Some(field) = vm.not_acted_on(console) {
                    return Err(self.refuse(index, field, "not supported on this board"));
                }
            }
        }
        Ok(Read {
            manifest,
            files: self.files,
        })
    }

    /// `FILE:LINE:COLUMN` of a range of the text.
    fn location(&self, range: Range<usize>) -> String {
        let before = self.text.get(..range.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        format!("{}:{line}:{column}", self.path.display())
    }

    /// Where a value stands, or else its device, its VM, the file.
    fn place(&self, place: Place) -> String {
        let candidates = [
            (place.vm, place.device, place.field),
            (place.vm, place.device, Field::Devices),
            (place.vm, None, Field::Vm),
        ];
        let span = candidates.iter().find_map(|at| self.spans.get(at));
        self.location(span.cloned().unwrap_or(0..0))
    }

    /// Notes where a value stands, and gives it back.
    fn take<T>(&mut self, vm: usize, field: Field, value: Spanned<T>) -> T {
        self.spans.insert((Some(vm), None, field), value.span());
        value.into_inner()
    }

    fn refuse(&self, vm: usize, field: Field, why: impl fmt::Display) -> anyhow::Error {
        let place = Place {
            vm: Some(vm),
            device: None,
            field,
        };
        anyhow!("{}: {place}: {why}", self.place(place))
    }

    /// One of the words of a key, or its default.
    fn word<T>(
        &mut self,
        vm: usize,
        field: Field,
        value: Option<Spanned<String>>,
        (parse, words, default): (impl Fn(&str) -> Option<T>, &[&str], T),
    ) -> Result<T> {
        let Some(value) = value else {
            return Ok(default);
        };
        let word = self.take(vm, field, value);
        parse(&word).ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
            self.refuse(
                vm,
                field,
                format!("\"{word}\" is none of {}", words.join(", ")),
            )
        })
    }

    /// The name in the bundle of a file that `field` asks for. A file that several VMs ask for is
    /// there once.
    fn file(&mut self, vm: usize, field: Field, source: Source, asked_by: String) -> String {
        let name = format!("vm{vm}/{}", field.key());
        if let Some(known) = self.names.get(&source) {
            return known.clone();
        }
        self.names.insert(source.clone(), name.clone());
        self.files.push(FileToAdd {
            name: name.clone(),
            source,
            asked_by,
        });
        name
    }

    fn file_value(&mut self, vm: usize, field: Field, value: Spanned<String>) -> Result<String> {
        let value = self.take(vm, field, value);
        let directory = self.path.parent().unwrap_or(Path::new(""));
        let source = Source::parse(&value, directory).map_err(|why| self.refuse(vm, field, why))?;
        let asked_by = self.refuse(vm, field, format!("\"{value}\"")).to_string();
        Ok(self.file(vm, field, source, asked_by))
    }

    fn vm(&mut self, index: usize, raw: RawVm, overrides: &Overrides) -> Result<VmConfig> {
        let debian_6_1 = raw.kernel.get_ref() == "debian:6.1" && overrides.kernel.is_none();
        let name = self.take(index, Field::Name, raw.name);
        let memory = self.take(index, Field::Memory, raw.memory).0;
        let format = self.word(
            index,
            Field::KernelFormat,
            raw.kernel_format,
            (KernelFormat::parse, KernelFormat::WORDS, KernelFormat::Auto),
        )?;
        let kernel = match &overrides.kernel {
            Some(path) => Kernel {
                file: self.file(
                    index,
                    Field::Kernel,
                    Source::Path(path.clone()),
                    "--kernel".into(),
                ),
                format: KernelFormat::Auto,
            },
            None => Kernel {
                file: self.file_value(index, Field::Kernel, raw.kernel)?,
                format,
            },
        };
        let initrd = match (&overrides.initrd, raw.initrd) {
            (Some(path), _) => {
                let source = Source::Path(path.clone());
                Some(self.file(index, Field::Initrd, source, "--initrd".into()))
            }
            (None, Some(value)) => Some(self.file_value(index, Field::Initrd, value)?),
            (None, None) => None,
        };
        let dtb = raw
            .dtb
            .map(|value| self.file_value(index, Field::Dtb, value))
            .transpose()?;
        let append = match (&overrides.append, raw.append) {
            (Some(append), _) => append.clone(),
            (None, Some(value)) => self.take(index, Field::Append, value),
            (None, None) => String::new(),
        };
        let mut take_number =
            |field, value: Option<Spanned<u32>>| value.map(|value| self.take(index, field, value));
        let cpus = take_number(Field::Cpus, raw.cpus).unwrap_or(1);
        let time_slice_us = take_number(Field::TimeSliceUs, raw.time_slice_us);
        let serial = take_number(Field::Serial, raw.serial);
        let config = VmConfig {
            cpus,
            pin: raw
                .pin
                .map(|value| self.take(index, Field::Pin, value))
                .unwrap_or_default(),
            time_slice_us,
            start: self.start(index, raw.start)?,
            restart: self.word(
                index,
                Field::Restart,
                raw.restart,
                (Restart::parse, Restart::WORDS, Restart::OnReset),
            )?,
            kernel,
            initrd,
            dtb,
            append,
            firmware: self.word(
                index,
                Field::Firmware,
                raw.firmware,
                (Firmware::parse, Firmware::WORDS, Firmware::Dt),
            )?,
            console: Console {
                uart: self.word(
                    index,
                    Field::Console,
                    raw.console,
                    (ConsoleUart::parse, ConsoleUart::WORDS, ConsoleUart::Auto),
                )?,
                serial,
            },
            iommu: self.word(
                index,
                Field::Iommu,
                raw.iommu,
                (IommuMode::parse, IommuMode::WORDS, IommuMode::Auto),
            )?,
            msi: self.word(
                index,
                Field::Msi,
                raw.msi,
                (MsiPolicy::parse, MsiPolicy::WORDS, MsiPolicy::Rmr),
            )?,
            msi_window: raw.msi_window.map(|value| {
                let window = self.take(index, Field::MsiWindow, value);
                MsiWindow {
                    start: window.start,
                    bytes: window.size.0,
                }
            }),
            tce: self.tce(index, raw.tce_pages)?,
            unsafe_dma: self.word(
                index,
                Field::UnsafeDma,
                raw.unsafe_dma,
                (UnsafeDma::parse, UnsafeDma::WORDS, UnsafeDma::Refused),
            )?,
            devices: self.devices(index, raw.devices)?,
            ..VmConfig::new(&name, memory, "")
        };
        // The kernel would boot and silently have no MSIs: it does not know `iommu-addresses`.
        if debian_6_1
            && config.firmware == Firmware::Dt
            && config.iommu == IommuMode::Nested
            && config.msi == MsiPolicy::Rmr
        {
            return Err(self.refuse(
                index,
                Field::Msi,
                "with firmware \"dt\" and a nested IOMMU, \"rmr\" needs a kernel of 6.3 or later; \
                 take \"vits\", firmware \"acpi\", or \"debian:6.12\"",
            ));
        }
        Ok(config)
    }

    fn start(&mut self, vm: usize, value: Option<Spanned<String>>) -> Result<Start> {
        let Some(value) = value else {
            return Ok(Start::Boot);
        };
        let value = self.take(vm, Field::Start, value);
        match value.as_str() {
            "boot" => Ok(Start::Boot),
            "manual" => Ok(Start::Manual),
            other => match other.strip_prefix("after:") {
                Some(name) => Ok(Start::After(name.to_owned())),
                None => Err(self.refuse(
                    vm,
                    Field::Start,
                    format!("\"{other}\" is none of \"boot\", \"manual\", \"after:VM\""),
                )),
            },
        }
    }

    fn tce(&mut self, vm: usize, value: Option<Spanned<RawTcePages>>) -> Result<TcePolicy> {
        let Some(value) = value else {
            return Ok(TcePolicy::default());
        };
        match self.take(vm, Field::TcePages, value) {
            RawTcePages::Word(word) if word == "default-window" => Ok(TcePolicy::DefaultWindow),
            RawTcePages::Word(word) => Err(self.refuse(
                vm,
                Field::TcePages,
                format!("\"{word}\" is neither \"default-window\" nor a list of page sizes"),
            )),
            RawTcePages::Sizes(sizes) => Ok(TcePolicy::Dynamic {
                page_shifts: sizes
                    .iter()
                    .map(|Bytes(bytes)| {
                        // What is no power of two is no page size: 0 says so to the check.
                        if bytes.is_power_of_two() {
                            bytes.trailing_zeros()
                        } else {
                            0
                        }
                    })
                    .collect(),
            }),
        }
    }

    fn devices(&mut self, vm: usize, raw: Vec<Spanned<RawDevice>>) -> Result<Vec<Device>> {
        let mut devices = Vec::new();
        for (index, device) in raw.into_iter().enumerate() {
            let at = |field| (Some(vm), Some(index), field);
            self.spans.insert(at(Field::Devices), device.span());
            let RawDevice {
                host,
                guest,
                p2p,
                smmu,
            } = device.into_inner();
            self.spans.insert(at(Field::Host), host.span());
            let refuse = |reader: &Self, field, why: bundle::DeviceAddressError| {
                let place = Place {
                    vm: Some(vm),
                    device: Some(index),
                    field,
                };
                anyhow!("{}: {place}: {why}", reader.place(place))
            };
            let host = host
                .get_ref()
                .parse()
                .map_err(|why| refuse(self, Field::Host, why))?;
            let guest = match guest {
                None => None,
                Some(guest) => {
                    self.spans.insert(at(Field::Guest), guest.span());
                    let guest = guest.get_ref().parse();
                    Some(guest.map_err(|why| refuse(self, Field::Guest, why))?)
                }
            };
            devices.push(Device {
                host,
                guest,
                p2p: if p2p {
                    PeerToPeer::Allowed
                } else {
                    PeerToPeer::Refused
                },
                smmu: smmu.map_or(0, |smmu| {
                    self.spans.insert(at(Field::Smmu), smmu.span());
                    smmu.into_inner()
                }),
            });
        }
        Ok(devices)
    }
}

#[cfg(test)]
mod tests;
