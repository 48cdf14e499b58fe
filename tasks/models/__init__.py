"""The foundation model, the adapter, and how both are run; `serving` goes out with each adapter."""
