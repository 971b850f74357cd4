"""Sixty things that people type into a photo search: objects, events, places, people, documents."""

SEARCHES = """\
birthday cake with candles
wedding dress
christmas tree
fireworks at night
sunset over the sea
snow covered mountains
eiffel tower
golden gate bridge
passport
driving licence
receipt from a restaurant
screenshot of a chat
handwritten notes
whiteboard after a meeting
business card
boarding pass
qr code
newborn baby
grandmother in the garden
graduation ceremony
school class photo
football match
marathon runner
yoga on the beach
camping tent in the forest
hiking trail
waterfall
cherry blossom
autumn leaves
sunflower field
cactus in a pot
ginger cat
black labrador
goldfish bowl
horse riding
penguins at the zoo
butterfly on a flower
sushi platter
pizza margherita
cup of cappuccino
homemade bread
barbecue with friends
red sports car
old steam train
aeroplane window
sailing boat in the harbour
bicycle leaning against a wall
traffic jam in the rain
skyline at dusk
empty office desk
living room with a sofa
kitchen renovation
broken phone screen
piano concert
guitar on stage
halloween costume
carnival parade
hot air balloon
northern lights
children building a sandcastle
""".splitlines()
