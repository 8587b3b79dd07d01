from timet.data.find import main

main()
