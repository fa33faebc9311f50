//! CPUs, and how they are started.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};

use crate::{
    Error, Problem,
    bus::reg,
    tree::{Node, Status},
};

/// One hardware thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Arm: the affinity fields of MPIDR_EL1 [DDI 0487 D19.2.103]. POWER: the interrupt server
    /// number.
    pub id: u64,
    /// The `reg` of its core's node; equal to `id` on Arm.
    pub core: u64,
    /// The first `compatible`.
    pub compatible: Option<String>,
    /// How it is started.
    pub enable_method: EnableMethod,
    /// Whether it may be started.
    pub status: CpuStatus,
}

/// How a CPU is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnableMethod {
    /// By PSCI's `CPU_ON`.
    Psci,
    /// By RTAS's `start-cpu`.
    Rtas,
    /// By a write to this physical address.
    SpinTable {
        /// `cpu-release-addr`.
        release: u64,
    },
    /// In a way that is not known.
    Unknown,
}

/// `status` of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuStatus {
    /// Running or ready to be started.
    Okay,
    /// Quiescent; not for us.
    Disabled,
    /// Broken.
    Failed,
}

/// How PSCI is called [DEN 0022].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Psci {
    /// The instruction.
    pub method: Conduit,
    /// What the tree promises.
    pub version: PsciVersion,
}

/// The instruction that reaches the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `SMC`.
    Smc,
    /// `HVC`.
    Hvc,
}

/// The PSCI version a tree promises; `PSCI_VERSION` tells the exact one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PsciVersion {
    /// Before 0.2: function IDs are the firmware's choice.
    V0_1 {
        /// The function ID of `CPU_ON`.
        cpu_on: Option<u32>,
        /// The function ID of `CPU_OFF`.
        cpu_off: Option<u32>,
    },
    /// 0.2: standard function IDs.
    V0_2,
    /// 1.0 or later.
    V1_0,
}

/// What all cores of a POWER machine share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerCpus {
    /// Ticks of the time base a second.
    pub timebase_hz: u64,
    /// Width of the decrementer, when larger than 32 bits.
    pub decrementer_bits: Option<u32>,
    /// `ibm,pa-features` as it stands: a length, a type, then bytes whose bits are numbered from
    /// the most significant one.
    pub pa_features: Vec<u8>,
    /// `ibm,processor-radix-AP-encodings`: page shift in the low bits, the AP encoding in the top
    /// three.
    pub radix_ap_encodings: Vec<u32>,
}

impl PowerCpus {
    /// Bit `bit` (0 is the most significant) of byte `byte` of the first attribute block.
    #[must_use]
    pub fn has_feature(&self, byte: usize, bit: u8) -> bool {
        self.pa_features
            .get(byte.saturating_add(2))
            .and_then(|value| value.checked_shl(bit.into()))
            .is_some_and(|value| value & 0x80 != 0)
    }
}

/// The first `compatible`, when it is no longer than one is; every thread gets a copy.
fn first_compatible(node: Node<'_, '_>) -> Option<String> {
    let compatible = node.compatible().next()?;
    (compatible.len() <= 64).then(|| compatible.to_string())
}

/// Adds the threads of a child of `/cpus`.
pub(crate) fn cpu(node: Node<'_, '_>, cpus: &mut Vec<Cpu>) -> Result<(), Error> {
    if !node.is_device_type("cpu") && !node.name().starts_with("cpu@") {
        return Ok(());
    }
    let (core, _) = reg(node)?
        .first()
        .copied()
        .ok_or_else(|| node.error("reg", Problem::Missing))?;
    let status = match node.status() {
        Status::Okay => CpuStatus::Okay,
        Status::Disabled => CpuStatus::Disabled,
        Status::Failed => CpuStatus::Failed,
    };
    let compatible = first_compatible(node);
    let mut servers = node.cells("ibm,ppc-interrupt-server#s")?;
    if servers.is_empty() {
        let method = match node.string("enable-method")?.as_deref() {
            Some("psci") => EnableMethod::Psci,
            Some("spin-table") => EnableMethod::SpinTable {
                release: node
                    .number("cpu-release-addr")?
                    .ok_or_else(|| node.error("cpu-release-addr", Problem::Missing))?,
            },
            _ => EnableMethod::Unknown,
        };
        let cpu = Cpu {
            id: core,
            core,
            compatible,
            enable_method: method,
            status,
        };
        return node.push("reg", cpus, cpu);
    }
    while let Some(server) = servers.next() {
        let cpu = Cpu {
            id: server.into(),
            core,
            compatible: compatible.clone(),
            enable_method: EnableMethod::Rtas,
            status,
        };
        node.push("ibm,ppc-interrupt-server#s", cpus, cpu)?;
    }
    Ok(())
}

/// What the first core's node says of a POWER machine.
pub(crate) fn power(node: Node<'_, '_>) -> Result<Option<PowerCpus>, Error> {
    if !node.has("ibm,ppc-interrupt-server#s") {
        return Ok(None);
    }
    let timebase = match node.number("ibm,extended-timebase-frequency")? {
        Some(hz) => Some(hz),
        None => node.number("timebase-frequency")?,
    };
    let mut encodings = node.cells("ibm,processor-radix-AP-encodings")?;
    Ok(Some(PowerCpus {
        timebase_hz: timebase.ok_or_else(|| node.error("timebase-frequency", Problem::Missing))?,
        decrementer_bits: node.u32("ibm,dec-bits")?,
        pa_features: node.get("ibm,pa-features").unwrap_or_default().to_vec(),
        radix_ap_encodings: core::iter::from_fn(|| encodings.next()).collect(),
    }))
}

pub(crate) fn psci(node: Node<'_, '_>) -> Result<Option<Psci>, Error> {
    let version = if node.is_compatible("arm,psci-1.0") {
        PsciVersion::V1_0
    } else if node.is_compatible("arm,psci-0.2") {
        PsciVersion::V0_2
    } else if node.is_compatible("arm,psci") {
        PsciVersion::V0_1 {
            cpu_on: node.u32("cpu_on")?,
            cpu_off: node.u32("cpu_off")?,
        }
    } else {
        return Ok(None);
    };
    let method = match node.get("method") {
        Some(b"smc\0") => Conduit::Smc,
        Some(b"hvc\0") => Conduit::Hvc,
        Some(_) => return Err(node.error("method", Problem::NotText)),
        None => return Err(node.error("method", Problem::Missing)),
    };
    Ok(Some(Psci { method, version }))
}
