"""What several tests share: stand-ins (a browser, the Hub), small networks and pictures, other processes."""
