"""What trains, with one owner: adapters after the layers, and the head."""
