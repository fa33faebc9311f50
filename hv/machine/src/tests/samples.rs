//! Device trees built in code. Values are those QEMU 10.0 gives its machines.

use std::{string::String, vec::Vec};

use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

/// A node under construction. Names are not checked: QEMU's own break the rules.
pub(super) struct N(DeviceTreeNode);

pub(super) fn node(name: &str) -> N {
    N(DeviceTreeNode::new_unchecked(name))
}

impl N {
    pub(super) fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        self.0
            .add_property(DeviceTreeProperty::new_unchecked(name, value));
        self
    }

    pub(super) fn cells(self, name: &str, cells: &[u32]) -> Self {
        let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.bytes(name, &bytes)
    }

    pub(super) fn text(self, name: &str, strings: &[&str]) -> Self {
        let mut all = String::new();
        for string in strings {
            all.push_str(string);
            all.push('\0');
        }
        self.bytes(name, all.as_bytes())
    }

    pub(super) fn flag(self, name: &str) -> Self {
        self.bytes(name, &[])
    }

    pub(super) fn child(mut self, child: Self) -> Self {
        self.0.add_child(child.0);
        self
    }

    /// A child changed by `change`; it must be there.
    pub(super) fn edit(mut self, path: &[&str], change: impl FnOnce(Self) -> Self) -> Self {
        let mut here = &mut self.0;
        for name in path {
            here = here.child_mut(name).expect("the sample has this node");
        }
        let edited = change(Self(here.clone()));
        *here = edited.0;
        self
    }

    pub(super) fn without(mut self, name: &str) -> Self {
        let found = self.0.remove_child(name).is_some() || self.0.remove_property(name).is_some();
        assert!(found, "the sample has no {name}");
        self
    }

    pub(super) fn blob(self) -> Vec<u8> {
        let mut tree = DeviceTree::new();
        tree.root = self.0;
        tree.to_dtb()
    }
}

pub(super) const GIC: u32 = 0x8002;
pub(super) const ITS: u32 = 0x8003;
pub(super) const SMMU: u32 = 0x8004;

/// `-M virt,gic-version=3,virtualization=on,iommu=smmuv3 -m 1G`, with `cpus` CPUs.
pub(super) fn virt(cpus: u32) -> N {
    let mut all = node("cpus")
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[0]);
    for cpu in 0..cpus {
        // 16 CPUs a cluster: Aff0 has 4 bits.
        let mpidr = ((cpu / 16) << 8) | (cpu % 16);
        all = all.child(
            node(&std::format!("cpu@{cpu:x}"))
                .text("device_type", &["cpu"])
                .text("compatible", &["arm,cortex-a57"])
                .text("enable-method", &["psci"])
                .cells("reg", &[mpidr])
                .cells("phandle", &[0x9000 + cpu]),
        );
    }
    let mut root = node("")
        .cells("interrupt-parent", &[GIC])
        .text("model", &["linux,dummy-virt"])
        .cells("#size-cells", &[2])
        .cells("#address-cells", &[2])
        .text("compatible", &["linux,dummy-virt"])
        .child(
            node("psci")
                .text("compatible", &["arm,psci-1.0", "arm,psci-0.2", "arm,psci"])
                .text("method", &["smc"]),
        )
        .child(
            node("memory@40000000")
                .cells("reg", &[0, 0x4000_0000, 0, 0x4000_0000])
                .text("device_type", &["memory"]),
        )
        .child(all)
        .child(
            node("timer")
                .cells(
                    "interrupts",
                    &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4, 1, 12, 4],
                )
                .flag("always-on")
                .text("compatible", &["arm,armv8-timer", "arm,armv7-timer"]),
        )
        .child(
            node("intc@8000000")
                .cells("phandle", &[GIC])
                .cells("interrupts", &[1, 9, 4])
                .cells(
                    "reg",
                    &[0, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0x00f6_0000],
                )
                .cells("#redistributor-regions", &[1])
                .text("compatible", &["arm,gic-v3"])
                .flag("ranges")
                .cells("#size-cells", &[2])
                .cells("#address-cells", &[2])
                .flag("interrupt-controller")
                .cells("#interrupt-cells", &[3])
                .child(
                    node("its@8080000")
                        .cells("phandle", &[ITS])
                        .cells("reg", &[0, 0x0808_0000, 0, 0x2_0000])
                        .cells("#msi-cells", &[1])
                        .flag("msi-controller")
                        .text("compatible", &["arm,gic-v3-its"]),
                ),
        )
        .child(
            node("pl011@9000000")
                .text("clock-names", &["uartclk", "apb_pclk"])
                .cells("interrupts", &[0, 1, 4])
                .cells("reg", &[0, 0x0900_0000, 0, 0x1000])
                .text("compatible", &["arm,pl011", "arm,primecell"]),
        )
        .child(
            node("pl031@9010000")
                .text("clock-names", &["apb_pclk"])
                .cells("interrupts", &[0, 2, 4])
                .cells("reg", &[0, 0x0901_0000, 0, 0x1000])
                .text("compatible", &["arm,pl031", "arm,primecell"]),
        )
        .child(
            node("smmuv3@9050000")
                .cells("phandle", &[SMMU])
                .cells("#iommu-cells", &[1])
                .flag("dma-coherent")
                .text(
                    "interrupt-names",
                    &["eventq", "priq", "cmdq-sync", "gerror"],
                )
                .cells("interrupts", &[0, 74, 1, 0, 75, 1, 0, 76, 1, 0, 77, 1])
                .cells("reg", &[0, 0x0905_0000, 0, 0x2_0000])
                .text("compatible", &["arm,smmu-v3"]),
        )
        .child(virt_pcie())
        .child(
            node("chosen")
                .text("bootargs", &["log=info"])
                .cells("linux,initrd-start", &[0x4800_0000])
                .cells("linux,initrd-end", &[0x4812_3456])
                .text("stdout-path", &["/pl011@9000000"]),
        );
    for slot in 0..32u32 {
        let base = 0x0a00_0000 + slot * 0x200;
        root = root.child(
            node(&std::format!("virtio_mmio@{base:x}"))
                .flag("dma-coherent")
                .cells("interrupts", &[0, 16 + slot, 1])
                .cells("reg", &[0, base, 0, 0x200])
                .text("compatible", &["virtio,mmio"]),
        );
    }
    root
}

fn virt_pcie() -> N {
    let mut map = Vec::new();
    for slot in 0..4u32 {
        for pin in 0..4u32 {
            let spi = 3 + (slot + pin) % 4;
            map.extend([slot << 11, 0, 0, pin + 1, GIC, 0, 0, 0, spi, 4]);
        }
    }
    node("pcie@10000000")
        .cells("iommu-map", &[0, SMMU, 0, 0x1_0000])
        .cells("interrupt-map-mask", &[0x1800, 0, 0, 7])
        .cells("interrupt-map", &map)
        .cells("#interrupt-cells", &[1])
        .cells(
            "ranges",
            &[
                0x0100_0000,
                0,
                0,
                0,
                0x3eff_0000,
                0,
                0x1_0000, //
                0x0200_0000,
                0,
                0x1000_0000,
                0,
                0x1000_0000,
                0,
                0x2eff_0000, //
                0x0300_0000,
                0x80,
                0,
                0x80,
                0,
                0x80,
                0,
            ],
        )
        .cells("reg", &[0x40, 0x1000_0000, 0, 0x1000_0000])
        .cells("msi-map", &[0, ITS, 0, 0x1_0000])
        .flag("dma-coherent")
        .cells("bus-range", &[0, 0xff])
        .cells("linux,pci-domain", &[0])
        .cells("#size-cells", &[2])
        .cells("#address-cells", &[3])
        .text("device_type", &["pci"])
        .text("compatible", &["pci-host-ecam-generic"])
}

pub(super) const XICS: u32 = 0x1111;

/// `-M pseries -cpu power9 -m 2G` with `cpus` CPUs, cut to what matters.
pub(super) fn pseries(cpus: u32) -> N {
    let mut all = node("cpus")
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[0]);
    for cpu in 0..cpus {
        all = all.child(
            node(&std::format!("PowerPC,POWER9@{cpu:x}"))
                .text("device_type", &["cpu"])
                .cells("reg", &[cpu])
                .cells("ibm,ppc-interrupt-server#s", &[cpu])
                .cells("ibm,ppc-interrupt-gserver#s", &[cpu, 0])
                .cells("timebase-frequency", &[512_000_000])
                .cells("ibm,dec-bits", &[0x38])
                .bytes(
                    "ibm,pa-features",
                    &[6, 0, 0xf6, 0x1f, 0xc7, 0xc0, 0x80, 0xf0],
                )
                .cells(
                    "ibm,processor-radix-AP-encodings",
                    &[0x0c, 0xa000_0010, 0x2000_0015, 0x4000_001e],
                ),
        );
    }
    node("")
        .text("model", &["IBM pSeries (emulated by qemu)"])
        .text("compatible", &["qemu,pseries"])
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[2])
        .text("device_type", &["chrp"])
        .cells("interrupt-parent", &[XICS])
        .child(
            node("memory@0")
                .text("device_type", &["memory"])
                .cells("reg", &[0, 0, 0, 0x8000_0000]),
        )
        .child(all)
        .child(
            node("rtas")
                .cells("event-scan", &[0x200e])
                .cells("display-character", &[0x200a])
                .cells("power-off", &[0x2003])
                .cells("start-cpu", &[0x2011])
                .cells("ibm,write-pci-config", &[0x2017])
                .cells("ibm,read-pci-config", &[0x2016])
                .cells("rtas-error-log-max", &[0x800])
                .cells("rtas-event-scan-rate", &[1])
                .cells("rtas-size", &[20])
                .cells("ibm,max-associativity-domains", &[4, 0, 0, 0, 1])
                .text(
                    "ibm,hypertas-functions",
                    &["hcall-pft", "hcall-term", "hcall-tce", "hcall-multi-tce"],
                ),
        )
        .child(
            node("interrupt-controller")
                .text("device_type", &["PowerPC-External-Interrupt-Presentation"])
                .text("compatible", &["IBM,ppc-xicp"])
                .flag("interrupt-controller")
                .cells("ibm,interrupt-server-ranges", &[0, cpus])
                .cells("#interrupt-cells", &[2])
                .cells("phandle", &[XICS]),
        )
        .child(
            node("vdevice")
                .text("compatible", &["IBM,vdevice"])
                .text("device_type", &["vdevice"])
                .cells("#address-cells", &[1])
                .cells("#size-cells", &[0])
                .cells("#interrupt-cells", &[2])
                .flag("interrupt-controller")
                .child(
                    node("vty@71000000")
                        .text("device_type", &["serial"])
                        .text("compatible", &["hvterm1"])
                        .cells("reg", &[0x7100_0000])
                        .cells("interrupts", &[0x1100, 0]),
                ),
        )
        .child(
            node("pci@800000020000000")
                .text("device_type", &["pci"])
                .text("compatible", &["IBM,Logical_PHB"])
                .cells("#address-cells", &[3])
                .cells("#size-cells", &[2])
                .cells("#interrupt-cells", &[1])
                .cells("reg", &[0x0800_0000, 0x2000_0000, 0, 0])
                .cells("bus-range", &[0, 0xff])
                .cells(
                    "ranges",
                    &[
                        0x0100_0000,
                        0,
                        0,
                        0x2000,
                        0,
                        0,
                        0x1_0000, //
                        0x0200_0000,
                        0,
                        0x8000_0000,
                        0x2000,
                        0x8000_0000,
                        0,
                        0x7fff_0000, //
                        0x0300_0000,
                        0x2100,
                        0,
                        0x2100,
                        0,
                        0x100,
                        0,
                    ],
                )
                .cells("interrupt-map-mask", &[0x1800, 0, 0, 7])
                .cells("interrupt-map", &[0, 0, 0, 1, XICS, 0x1200, 1])
                .cells("ibm,#dma-address-cells", &[2])
                .cells("ibm,#dma-size-cells", &[2])
                .cells("ibm,dma-window", &[0x8000_0000, 0, 0, 0, 0x4000_0000])
                .cells("ibm,ddw-applicable", &[0x2026, 0x2027, 0x2028])
                .cells("ibm,ddw-extensions", &[2, 0x2029, 1]),
        )
        .child(
            node("chosen")
                .text("stdout-path", &["/vdevice/vty@71000000"])
                .cells("linux,initrd-start", &[0, 0x0400_0000])
                .cells("linux,initrd-end", &[0, 0x0410_0000])
                .bytes(
                    "ibm,arch-vec-5-platform-support",
                    &[0x17, 0x80, 0x18, 0xc0, 0x19, 0, 0x1a, 0x40],
                ),
        )
}
