//! The identification registers, and the table of the crate's page.

use iommu::Ats;
use smmuv3::spec::{Idr0, Idr1, Idr3, Idr5, regs};

use super::{Guest, qemu, rich};
use crate::{Features, Messages, Options, Unfit};

#[test]
fn over_qemu_a_guest_sees_stage_1_with_ranges_and_nothing_else() {
    let guest = Guest::new();
    // S1P TTF COHACC ASID16 TTENDIAN=2 STALL_MODEL=1 TERM_MODEL ST_LEVEL=1.
    assert_eq!(guest.r32(regs::IDR0), 0x0d40_101a);
    // CMDQS = EVENTQS = 10, SIDSIZE 16.
    assert_eq!(guest.r32(regs::IDR1), 10 << 21 | 10 << 16 | 16);
    assert_eq!(guest.r32(regs::IDR2), 0);
    // RIL, BBML 2.
    assert_eq!(guest.r32(regs::IDR3), 0x1400);
    assert_eq!(guest.r32(regs::IDR4), 0);
    // 4K, 16K, 64K; 40 bits, as stage 2 takes.
    assert_eq!(guest.r32(regs::IDR5), 0x72);
    assert_eq!(guest.r32(regs::IIDR), 0);
    assert_eq!(guest.r32(regs::AIDR), 1);
}

/// The fields of the crate's page: register, field, shift, width, and how it is derived.
fn table() -> std::vec::Vec<(&'static str, &'static str, u32, u32, &'static str)> {
    let page = include_str!("../../../../docs/vsmmuv3.md");
    let start = page.find("<!-- identification -->").unwrap();
    let end = page.find("<!-- end of identification -->").unwrap();
    let rows = page[start..end]
        .lines()
        .filter(|line| line.starts_with("| `IDR"));
    rows.map(|line| {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let register = cells.next().unwrap().trim_matches('`');
        let field = cells.next().unwrap().trim_matches('`');
        let bits = cells.next().unwrap();
        let (high, low) = bits.split_once(':').unwrap_or((bits, bits));
        let (high, low): (u32, u32) = (high.parse().unwrap(), low.parse().unwrap());
        (register, field, low, high - low + 1, cells.next().unwrap())
    })
    .collect()
}

/// The identification registers when the hardware has every bit set, or only what is needed.
fn derived(all: u32, options: Options) -> [u32; 4] {
    // What must be so: both stages, AArch64, coherent, little-endian, terminating.
    let idr0 = Idr0::from_bits(all)
        .with_s1p(true)
        .with_s2p(true)
        .with_ttf(2)
        .with_cohacc(true)
        .with_ttendian(2)
        .with_stall_model(1);
    let identity = smmuv3::Identity {
        idr0,
        idr1: Idr1::from_bits(all),
        idr3: Idr3::from_bits(all),
        idr5: Idr5::from_bits(all),
        ..qemu()
    };
    let features = Features::derive(&identity, options).unwrap();
    let (a, b, c, d) = features.identification();
    [a.into_bits(), b.into_bits(), c.into_bits(), d.into_bits()]
}

#[test]
fn the_page_names_every_bit_that_can_ever_be_set() {
    let options = Options {
        ats: Ats::On,
        messages: Messages::Offered,
        ipa_bits: 48,
        ..Options::default()
    };
    let most = derived(u32::MAX, options);
    let mut named = [0_u32; 4];
    for (register, field, shift, width, kind) in table() {
        let at = ["IDR0", "IDR1", "IDR3", "IDR5"]
            .iter()
            .position(|name| *name == register)
            .unwrap();
        let mask = ((1_u64 << width) - 1) as u32;
        assert_eq!(named[at] & mask << shift, 0, "{field} twice");
        named[at] |= mask << shift;
        let value = most[at] >> shift & mask;
        assert_ne!(value, 0, "{field} is on the page and never set");
        let bare = derived(0, Options::default())[at] >> shift & mask;
        match kind {
            "always" => assert_eq!(bare, value, "{field}"),
            "as the hardware" => assert_eq!(bare, 0, "{field}"),
            "offered" => assert_eq!(bare, 0, "{field}"),
            "chosen" => {}
            other => panic!("{field}: {other}"),
        }
    }
    for at in 0..4 {
        assert_eq!(most[at] & !named[at], 0, "IDR register {at}");
    }
}

#[test]
fn what_the_guest_must_never_see_is_never_set() {
    let options = Options {
        ats: Ats::On,
        ..Options::default()
    };
    let [idr0, idr1, idr3, _] = derived(u32::MAX, options);
    let idr0 = Idr0::from_bits(idr0);
    assert!(!idr0.s2p() && !idr0.hyp() && !idr0.sev() && !idr0.btm());
    assert!(!idr0.vmid16() && !idr0.vmw() && !idr0.atos() && !idr0.vatos() && !idr0.pri());
    assert!(!idr0.ns1ats() && !idr0.rme() && !idr0.atsrecerr() && !idr0.dormhint());
    assert_eq!((idr0.httu(), idr0.stall_model()), (0, 1));
    let idr1 = Idr1::from_bits(idr1);
    assert!(!idr1.queues_preset() && !idr1.tables_preset() && !idr1.rel() && !idr1.ecmdq());
    assert!(!idr1.attr_types_ovr() && !idr1.attr_perms_ovr());
    assert_eq!(idr1.priqs(), 0);
    let idr3 = Idr3::from_bits(idr3);
    assert!(!idr3.fwb() && !idr3.mpam() && !idr3.xnx() && !idr3.stt() && !idr3.dpt());
}

#[test]
fn what_the_hardware_lacks_is_not_promised() {
    let mut bare = qemu();
    bare.idr0 = bare.idr0.with_asid16(false).with_term_model(false);
    bare.idr3 = bare.idr3.with_ril(false).with_bbml(0);
    bare.idr5 = bare
        .idr5
        .with_gran16k(false)
        .with_gran64k(false)
        .with_oas(1);
    let features = Features::derive(&bare, Options::default()).unwrap();
    let (idr0, _, idr3, idr5) = features.identification();
    assert!(!idr0.asid16() && !idr0.term_model());
    assert_eq!(idr3.into_bits(), 0);
    assert!(!idr5.gran16k() && !idr5.gran64k() && idr5.gran4k());
    assert_eq!(features.output_bits(), 36);
}

#[test]
fn the_output_size_is_the_largest_that_stage_2_takes_all_of() {
    for (bits, oas) in [
        (32, 32),
        (35, 32),
        (36, 36),
        (39, 36),
        (40, 40),
        (43, 42),
        (44, 44),
    ] {
        let options = Options {
            ipa_bits: bits,
            ..Options::default()
        };
        let features = Features::derive(&qemu(), options).unwrap();
        assert_eq!(features.output_bits(), oas, "{bits}");
    }
    // The hardware has 44.
    let wide = Options {
        ipa_bits: 48,
        ..Options::default()
    };
    assert_eq!(Features::derive(&qemu(), wide).unwrap().output_bits(), 44);
    let narrow = Options {
        ipa_bits: 31,
        ..Options::default()
    };
    assert_eq!(Features::derive(&qemu(), narrow), Err(Unfit::InputBits(31)));
}

#[test]
fn hardware_that_cannot_keep_the_promises_is_refused() {
    let refused = |change: &dyn Fn(Idr0) -> Idr0| {
        let mut identity = qemu();
        identity.idr0 = change(identity.idr0);
        Features::derive(&identity, Options::default()).unwrap_err()
    };
    assert_eq!(refused(&|idr0| idr0.with_s1p(false)), Unfit::NoNesting);
    assert_eq!(refused(&|idr0| idr0.with_s2p(false)), Unfit::NoNesting);
    assert_eq!(refused(&|idr0| idr0.with_ttf(1)), Unfit::Tables);
    assert_eq!(refused(&|idr0| idr0.with_ttendian(3)), Unfit::Tables);
    assert_eq!(
        refused(&|idr0| idr0.with_stall_model(2)),
        Unfit::StallForced
    );
    assert_eq!(refused(&|idr0| idr0.with_cohacc(false)), Unfit::NotCoherent);
}

#[test]
fn ats_needs_the_hardware_and_the_owners_consent() {
    for (has, wants, offered) in [
        (false, Ats::On, false),
        (true, Ats::Off, false),
        (true, Ats::On, true),
    ] {
        let mut identity = qemu();
        identity.idr0 = identity.idr0.with_ats(has);
        let options = Options {
            ats: wants,
            ..Options::default()
        };
        assert_eq!(Features::derive(&identity, options).unwrap().ats(), offered);
    }
}

#[test]
fn two_level_context_tables_need_substreams() {
    let mut identity = rich();
    identity.idr1 = identity.idr1.with_ssidsize(0);
    let features = Features::derive(&identity, Options::default()).unwrap();
    assert!(!features.identification().0.cd2l());
    let features = Features::derive(&rich(), Options::default()).unwrap();
    assert!(features.identification().0.cd2l());
    assert_eq!(features.substream_bits(), 16);
}

#[test]
fn queue_limits_stay_where_linux_takes_them() {
    for (asked, is) in [(0, 7), (6, 7), (7, 7), (19, 19), (31, 19)] {
        let options = Options {
            commands_log2: asked,
            events_log2: asked,
            ..Options::default()
        };
        let features = Features::derive(&qemu(), options).unwrap();
        let (_, idr1, ..) = features.identification();
        assert_eq!((idr1.cmdqs(), idr1.evtqs()), (is, is));
    }
}

/// The tests that the page names, and the text of the file that each is to be in.
fn named() -> std::vec::Vec<(&'static str, &'static str, &'static str)> {
    let files = [
        ("commands", include_str!("commands.rs")),
        ("events", include_str!("events.rs")),
        ("hostile", include_str!("hostile.rs")),
        ("messages", include_str!("messages.rs")),
        ("promise", include_str!("promise.rs")),
        ("registers", include_str!("registers.rs")),
        ("streams", include_str!("streams.rs")),
        ("replay", include_str!("../../tests/guest/replay.rs")),
        (
            "driver",
            include_str!("../../../smmuv3/tests/pair/driver.rs"),
        ),
        (
            "guests",
            include_str!("../../../smmuv3/tests/pair/guests.rs"),
        ),
        (
            "groups",
            include_str!("../../../smmuv3/tests/pair/groups.rs"),
        ),
        ("storm", include_str!("../../../smmuv3/tests/pair/storm.rs")),
        ("units", include_str!("../../../smmuv3/tests/pair/units.rs")),
    ];
    let page = include_str!("../../../../docs/vsmmuv3.md");
    let start = page.find("<!-- hostile -->").unwrap();
    let end = page.find("<!-- end of hostile -->").unwrap();
    let words = page[start..end].split('`');
    let paths = words.filter_map(|word| word.split_once("::"));
    paths
        .map(|(file, test)| {
            let found = files.iter().find(|(name, _)| *name == file);
            (file, test, found.unwrap_or_else(|| panic!("{file}")).1)
        })
        .collect()
}

#[test]
fn the_page_names_tests_that_exist() {
    let is_there = |test: &str, text: &str| text.contains(&std::format!("fn {test}("));
    let named = named();
    assert!(named.len() > 60);
    for (file, test, text) in &named {
        assert!(is_there(test, text), "{file}::{test}");
    }
    let (_, _, text) = named[0];
    assert!(!is_there("a_test_that_is_not_there", text));
}
