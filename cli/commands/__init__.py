"""One file per command; and `alike`, what `dgad train` sets before torch is loaded."""
