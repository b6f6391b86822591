"""Taking a state home: formats that other libraries load, each with a card that says where it comes from."""
