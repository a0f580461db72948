//! The figures of the boards.

use hwm_core::units::Bytes;

use super::{Architecture, Board};
use crate::geometry::{Engines, Profile};

#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    id: u32,
    constant: u32,
    name: &'static str,
    slices: u8,
    mib: u64,
    size: u8,
    starts: &'static [u8],
    max: u8,
    sm: u16,
    copy: u8,
    /// Decoders, encoders, JPEG, OFA.
    engines: [u8; 4],
}

impl Row {
    pub(super) fn profile(&self) -> Profile {
        let [decoders, encoders, jpeg, ofa] = self.engines;
        Profile {
            id: self.id,
            constant: self.constant,
            name: self.name.to_owned(),
            slices: self.slices,
            memory: Bytes::from_mb(self.mib),
            size: self.size,
            starts: self.starts.to_vec(),
            max: self.max,
            multiprocessors: self.sm,
            copy_engines: self.copy,
            engines: Engines {
                decoders,
                encoders,
                jpeg,
                ofa,
            },
        }
    }
}

/// Names and memory of the seven profiles of a card with eight slots: ids 19, 20, 15, 14, 9, 5, 0.
struct Eight {
    names: [&'static str; 7],
    mib: [u64; 7],
    sm: [u16; 7],
    copy: [u8; 7],
    engines: [[u8; 4]; 7],
}

/// Id, NVML's constant, slices, slots, starts, how many at most.
type Places = (u32, u32, u8, u8, &'static [u8], u8);

const fn eight(t: &Eight) -> [Row; 7] {
    const PLACES: [Places; 7] = [
        (19, 0, 1, 1, &[0, 1, 2, 3, 4, 5, 6], 7),
        (20, 7, 1, 1, &[0, 1, 2, 3, 4, 5, 6], 1),
        (15, 9, 1, 2, &[0, 2, 4, 6], 4),
        (14, 1, 2, 2, &[0, 2, 4], 3),
        (9, 2, 3, 4, &[0, 4], 2),
        (5, 3, 4, 4, &[0], 1),
        (0, 4, 7, 8, &[0], 1),
    ];
    let empty = Row {
        id: 0,
        constant: 0,
        name: "",
        slices: 0,
        mib: 0,
        size: 0,
        starts: &[],
        max: 0,
        sm: 0,
        copy: 0,
        engines: [0; 4],
    };
    let mut rows = [empty; 7];
    let mut i = 0;
    while i < 7 {
        let (id, constant, slices, size, starts, max) = PLACES[i];
        rows[i] = Row {
            id,
            constant,
            name: t.names[i],
            slices,
            mib: t.mib[i],
            size,
            starts,
            max,
            sm: t.sm[i],
            copy: t.copy[i],
            engines: t.engines[i],
        };
        i += 1;
    }
    rows
}

const GA100_SM: [u16; 7] = [14, 14, 14, 28, 42, 56, 98];
const GA100_COPY: [u8; 7] = [1, 1, 1, 2, 3, 4, 7];
const GA100_ENGINES: [[u8; 4]; 7] = [
    [0, 0, 0, 0],
    [1, 0, 1, 1],
    [1, 0, 0, 0],
    [1, 0, 0, 0],
    [2, 0, 0, 0],
    [2, 0, 0, 0],
    [5, 0, 1, 1],
];
const GH100_SM: [u16; 7] = [16, 16, 26, 32, 60, 64, 132];
const GH100_COPY: [u8; 7] = [1, 1, 1, 2, 3, 4, 8];
const GH100_ENGINES: [[u8; 4]; 7] = [
    [1, 0, 1, 0],
    [1, 0, 1, 1],
    [1, 0, 1, 0],
    [2, 0, 2, 0],
    [3, 0, 3, 0],
    [4, 0, 4, 0],
    [7, 0, 7, 1],
];

pub(super) const A100_40: Board = Board {
    name: "a100-40gb",
    model: "NVIDIA A100-SXM4-40GB",
    architecture: Architecture::Ampere,
    pci_id: 0x20B0_10DE,
    memory_mib: 40960,
    power_watts: 400,
    nvlinks: 12,
    rows: &eight(&Eight {
        names: [
            "1g.5gb",
            "1g.5gb+me",
            "1g.10gb",
            "2g.10gb",
            "3g.20gb",
            "4g.20gb",
            "7g.40gb",
        ],
        mib: [4864, 4864, 9856, 9856, 19968, 19968, 40192],
        sm: GA100_SM,
        copy: GA100_COPY,
        engines: GA100_ENGINES,
    }),
};

const NAMES_80: [&str; 7] = [
    "1g.10gb",
    "1g.10gb+me",
    "1g.20gb",
    "2g.20gb",
    "3g.40gb",
    "4g.40gb",
    "7g.80gb",
];

pub(super) const A100_80: Board = Board {
    name: "a100-80gb",
    model: "NVIDIA A100-SXM4-80GB",
    architecture: Architecture::Ampere,
    pci_id: 0x20B2_10DE,
    memory_mib: 81920,
    power_watts: 400,
    nvlinks: 12,
    rows: &eight(&Eight {
        names: NAMES_80,
        mib: [9856, 9856, 19968, 19968, 40192, 40192, 80384],
        sm: GA100_SM,
        copy: GA100_COPY,
        engines: GA100_ENGINES,
    }),
};

pub(super) const H100_80: Board = Board {
    name: "h100-80gb",
    model: "NVIDIA H100 80GB HBM3",
    architecture: Architecture::Hopper,
    pci_id: 0x2330_10DE,
    memory_mib: 81559,
    power_watts: 700,
    nvlinks: 18,
    rows: &eight(&Eight {
        names: NAMES_80,
        mib: [9984, 9984, 20096, 20096, 40448, 40448, 81152],
        sm: GH100_SM,
        copy: GH100_COPY,
        engines: GH100_ENGINES,
    }),
};

pub(super) const H100_94: Board = Board {
    name: "h100-94gb",
    model: "NVIDIA H100 NVL",
    architecture: Architecture::Hopper,
    pci_id: 0x2321_10DE,
    memory_mib: 95830,
    power_watts: 400,
    nvlinks: 12,
    rows: &eight(&Eight {
        names: [
            "1g.12gb",
            "1g.12gb+me",
            "1g.24gb",
            "2g.24gb",
            "3g.47gb",
            "4g.47gb",
            "7g.94gb",
        ],
        mib: [11776, 11776, 23808, 23808, 47616, 47616, 95488],
        sm: GH100_SM,
        copy: GH100_COPY,
        engines: GH100_ENGINES,
    }),
};

pub(super) const H100_96: Board = Board {
    name: "h100-96gb",
    model: "NVIDIA GH200 96GB HBM3",
    architecture: Architecture::Hopper,
    pci_id: 0x2342_10DE,
    memory_mib: 97871,
    power_watts: 700,
    nvlinks: 18,
    rows: &eight(&Eight {
        names: [
            "1g.12gb",
            "1g.12gb+me",
            "1g.24gb",
            "2g.24gb",
            "3g.48gb",
            "4g.48gb",
            "7g.96gb",
        ],
        mib: [12032, 12032, 24192, 24192, 48512, 48512, 97408],
        sm: GH100_SM,
        copy: GH100_COPY,
        engines: GH100_ENGINES,
    }),
};

pub(super) const H200: Board = Board {
    name: "h200",
    model: "NVIDIA H200",
    architecture: Architecture::Hopper,
    pci_id: 0x2335_10DE,
    memory_mib: 143_771,
    power_watts: 700,
    nvlinks: 18,
    rows: &eight(&Eight {
        names: [
            "1g.18gb",
            "1g.18gb+me",
            "1g.35gb",
            "2g.35gb",
            "3g.71gb",
            "4g.71gb",
            "7g.141gb",
        ],
        mib: [17792, 17792, 35712, 35712, 71552, 71552, 143_360],
        sm: GH100_SM,
        copy: GH100_COPY,
        engines: GH100_ENGINES,
    }),
};

pub(super) const B200: Board = Board {
    name: "b200",
    model: "NVIDIA B200",
    architecture: Architecture::Blackwell,
    pci_id: 0x2901_10DE,
    memory_mib: 183_359,
    power_watts: 1000,
    nvlinks: 18,
    rows: &eight(&Eight {
        names: [
            "1g.23gb",
            "1g.23gb+me",
            "1g.45gb",
            "2g.45gb",
            "3g.90gb",
            "4g.90gb",
            "7g.180gb",
        ],
        mib: [22784, 22784, 45696, 45696, 91520, 91520, 182_912],
        sm: [18, 18, 30, 36, 70, 72, 148],
        copy: [2, 2, 2, 4, 6, 8, 16],
        engines: GH100_ENGINES,
    }),
};

pub(super) const A30: Board = Board {
    name: "a30",
    model: "NVIDIA A30",
    architecture: Architecture::Ampere,
    pci_id: 0x20B7_10DE,
    memory_mib: 24576,
    power_watts: 165,
    nvlinks: 4,
    rows: &[
        a30(14, 0, "1g.6gb", 1, 5952, &[0, 1, 2, 3], 4, [0, 0, 0, 0]),
        a30(21, 7, "1g.6gb+me", 1, 5952, &[0, 1, 2, 3], 1, [1, 0, 1, 1]),
        a30(5, 1, "2g.12gb", 2, 12032, &[0, 2], 2, [2, 0, 0, 0]),
        a30(6, 8, "2g.12gb+me", 2, 12032, &[0, 2], 1, [2, 0, 1, 1]),
        a30(0, 3, "4g.24gb", 4, 24192, &[0], 1, [4, 0, 1, 1]),
    ],
};

#[allow(clippy::too_many_arguments, reason = "a row of a table")]
const fn a30(
    id: u32,
    constant: u32,
    name: &'static str,
    slices: u8,
    mib: u64,
    starts: &'static [u8],
    max: u8,
    engines: [u8; 4],
) -> Row {
    Row {
        id,
        constant,
        name,
        slices,
        mib,
        size: slices,
        starts,
        max,
        sm: 14 * slices as u16,
        copy: slices,
        engines,
    }
}

pub(super) const RTX_PRO_6000: Board = Board {
    name: "rtx-pro-6000",
    model: "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    architecture: Architecture::Blackwell,
    pci_id: 0x2BB5_10DE,
    memory_mib: 97887,
    power_watts: 600,
    nvlinks: 0,
    rows: &[
        pro(14, 0, "1g.24gb", 1, 4, [1, 1, 1, 0]),
        pro(21, 7, "1g.24gb+me", 1, 1, [1, 1, 1, 1]),
        pro(47, 10, "1g.24gb+gfx", 1, 4, [1, 1, 1, 0]),
        pro(65, 15, "1g.24gb+me.all", 1, 1, [4, 4, 4, 1]),
        pro(67, 13, "1g.24gb-me", 1, 4, [0, 0, 0, 0]),
        pro(5, 1, "2g.48gb", 2, 2, [2, 2, 2, 0]),
        pro(35, 11, "2g.48gb+gfx", 2, 2, [2, 2, 2, 0]),
        pro(64, 16, "2g.48gb+me.all", 2, 1, [4, 4, 4, 1]),
        pro(66, 14, "2g.48gb-me", 2, 2, [0, 0, 0, 0]),
        pro(0, 3, "4g.96gb", 4, 1, [4, 4, 4, 1]),
        pro(32, 12, "4g.96gb+gfx", 4, 1, [4, 4, 4, 1]),
    ],
};

const fn pro(id: u32, constant: u32, name: &'static str, slices: u8, max: u8, engines: [u8; 4]) -> Row {
    let (mib, starts, sm): (u64, &[u8], u16) = match slices {
        1 => (24192, &[0, 3, 6, 9], 46),
        2 => (48512, &[0, 6], 94),
        _ => (97280, &[0], 188),
    };
    Row {
        id,
        constant,
        name,
        slices,
        mib,
        size: 3 * slices,
        starts,
        max,
        sm,
        copy: slices,
        engines,
    }
}
