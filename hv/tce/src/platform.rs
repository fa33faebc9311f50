//! What is asked of the platform: the calls for entries, and the services for windows.

use types::{Iova, Liobn, PageSize};

use crate::Tce;

/// The most entries of one `H_PUT_TCE_INDIRECT`: a list is one page of 4 KiB. [LoPAPR §14.5.4]
pub const LIST: usize = 512;
/// The most entries that one `H_STUFF_TCE` clears here, so that no call takes long: some 2 ms of the
/// platform's time.
pub const MOST_STUFFED: u64 = 1 << 18;

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HcallError {
    /// `H_HARDWARE`.
    #[error("H_HARDWARE")]
    Hardware,
    /// `H_FUNCTION`: there is no such call.
    #[error("H_FUNCTION")]
    Function,
    /// `H_PARAMETER`: no such window, address, count or list.
    #[error("H_PARAMETER")]
    Parameter,
    /// `H_RESOURCE` or `H_NO_MEM`.
    #[error("H_RESOURCE")]
    Resource,
    /// Something else.
    #[error("status {0}")]
    Other(i64),
}

/// Why a service did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RtasError {
    /// The platform has no such service.
    #[error("no such service")]
    Missing,
    /// The service answered with this status.
    #[error("status {0}")]
    Status(i32),
}

/// Whether the platform takes several entries in a call (`hcall-multi-tce`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Multi {
    /// `H_PUT_TCE_INDIRECT` and `H_STUFF_TCE` exist.
    Yes,
    /// Every entry is a call.
    No,
}

/// What `ibm,query-pe-dma-window` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Windows that can still be created.
    pub available: u32,
    /// The most entries of a window, as far as the platform says.
    pub entries: u64,
    /// The page sizes: bit n for 2^n bytes.
    pub pages: u64,
}

/// A window that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSpec {
    /// The size of its pages.
    pub page: PageSize,
    /// Log2 of its size in bytes.
    pub shift: u8,
}

/// A window that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its table.
    pub liobn: Liobn,
    /// Its first bus address.
    pub base: Iova,
}

/// A PAPR platform's DMA calls. [LoPAPR §14.5.4]
///
/// Addresses are bus addresses, absolute also in a window that does not start at zero. A host bridge
/// is named by its unique id, as RTAS does.
#[auto_impl::auto_impl(&)]
pub trait Platform {
    /// `H_PUT_TCE`: writes one entry. When it returns, no device uses the old one any more.
    ///
    /// # Errors
    /// [`HcallError`]; the entry is then as before.
    fn put(&self, liobn: Liobn, at: Iova, tce: Tce) -> Result<(), HcallError>;

    /// `H_PUT_TCE_INDIRECT`: writes at most [`LIST`] entries, in order. The implementation copies them
    /// to a page of its own, big-endian.
    ///
    /// # Errors
    /// [`HcallError`]; entries at the start of the list may have been written then.
    fn put_list(&self, liobn: Liobn, at: Iova, list: &[Tce]) -> Result<(), HcallError>;

    /// `H_STUFF_TCE`: writes the same value to `count` entries.
    ///
    /// # Errors
    /// [`HcallError`]; some entries may have been written then.
    fn stuff(&self, liobn: Liobn, at: Iova, tce: Tce, count: u64) -> Result<(), HcallError>;

    /// `H_GET_TCE`: reads one entry.
    ///
    /// # Errors
    /// [`HcallError`].
    fn get(&self, liobn: Liobn, at: Iova) -> Result<Tce, HcallError>;

    /// `ibm,query-pe-dma-window`.
    ///
    /// # Errors
    /// [`RtasError`].
    fn query_windows(&self, buid: u64, config_address: u32) -> Result<Limits, RtasError>;

    /// `ibm,create-pe-dma-window`.
    ///
    /// # Errors
    /// [`RtasError`].
    fn create_window(
        &self,
        buid: u64,
        config_address: u32,
        spec: WindowSpec,
    ) -> Result<Created, RtasError>;

    /// `ibm,remove-pe-dma-window`.
    ///
    /// # Errors
    /// [`RtasError`].
    fn remove_window(&self, liobn: Liobn) -> Result<(), RtasError>;

    /// `ibm,reset-pe-dma-window`.
    ///
    /// # Errors
    /// [`RtasError`].
    fn reset_windows(&self, buid: u64, config_address: u32) -> Result<(), RtasError>;
}
