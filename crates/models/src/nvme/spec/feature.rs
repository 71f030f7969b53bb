// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Feature identifiers (5.21.1).

codes! {
    /// The features that the controller has.
    Feature: u8 {
        /// Arbitration.
        Arbitration = 0x01,
        /// Power Management.
        PowerManagement = 0x02,
        /// Temperature Threshold.
        TemperatureThreshold = 0x04,
        /// Error Recovery.
        ErrorRecovery = 0x05,
        /// Volatile Write Cache.
        VolatileWriteCache = 0x06,
        /// Number of Queues.
        NumberOfQueues = 0x07,
        /// Interrupt Coalescing.
        InterruptCoalescing = 0x08,
        /// Interrupt Vector Configuration.
        InterruptVector = 0x09,
        /// Write Atomicity Normal.
        WriteAtomicity = 0x0a,
        /// Asynchronous Event Configuration.
        AsyncEvents = 0x0b,
        /// Timestamp.
        Timestamp = 0x0e,
        /// Keep Alive Timer.
        KeepAliveTimer = 0x0f,
    }
}

codes! {
    /// What Get Features selects (5.14.1).
    Select: u8 {
        /// The value in force.
        Current = 0,
        /// The default.
        Default = 1,
        /// The saved value.
        Saved = 2,
        /// What can be done with the feature.
        Capabilities = 3,
    }
}
